"""NegMerge, Ext-Sub and Ethos against their definitions in float64 NumPy, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import low_rank
from weightsurgery.algebra.negations import agreed, extracted, specific
from weightsurgery.errors import EditError, NonFiniteError

# Results are float32: half an eps (6e-8) per entry, a few of them relative to a norm.
FLOAT32 = 1e-6

SHAPES = [(12, 12), (20, 8), (8, 20), (1, 6), (6, 1)]


def matrix(m: int, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n)).astype(np.float32).astype(np.float64)


def torch_of(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float()


def close(actual: torch.Tensor, wanted: np.ndarray, of: np.ndarray) -> None:
    assert actual.dtype == torch.float32
    assert np.linalg.norm(actual.double().numpy() - wanted) <= FLOAT32 * np.linalg.norm(of)


# NegMerge


def agreed_by_definition(vectors: list[np.ndarray]) -> np.ndarray:
    signs = np.stack([np.sign(v) for v in vectors])
    same = (signs == signs[0]).all(0) & (signs[0] != 0)
    return np.mean(vectors, 0) * same


@given(count=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_the_mean_where_all_signs_agree(count: int, seed: int) -> None:
    vectors = [matrix(9, 7, seed + i) for i in range(count)]
    vectors[-1][0] = 0  # a zero has no sign
    wanted = agreed_by_definition(vectors)
    if count > 1:  # the plain mean is something else
        assert np.linalg.norm(wanted - np.mean(vectors, 0)) > 0.1
    merged = agreed([torch_of(v) for v in vectors])
    close(merged, wanted, np.mean(np.abs(vectors), 0))
    assert not merged[0].any()
    assert bool((merged.abs() <= torch_of(np.abs(np.mean(vectors, 0))) * (1 + 1e-6)).all())


def test_equal_vectors_are_their_own_result_to_the_bit() -> None:
    vector = torch_of(matrix(9, 7, 0))
    other = torch_of(matrix(9, 7, 1))
    assert not torch.equal(agreed([vector, vector, other]), vector)
    for count in (1, 2, 3, 7):
        assert torch.equal(agreed([vector] * count), vector)


def test_opposite_vectors_leave_nothing() -> None:
    vector = torch_of(matrix(9, 7, 0))
    assert vector.any()
    assert not agreed([vector, -vector]).any()


def test_one_vector_that_disagrees_is_enough() -> None:
    vector = torch_of(matrix(9, 7, 0))
    turned = vector.clone()
    turned[2, 3] *= -1e-3
    merged = agreed([vector] * 5 + [turned])
    assert merged[2, 3] == 0
    assert int((merged == 0).sum()) == 1


def test_order_and_scale_do_not_matter() -> None:
    vectors = [torch_of(matrix(9, 7, i)) for i in range(3)]
    merged = agreed(vectors)
    assert torch.equal(agreed(vectors[::-1]), merged)
    assert torch.equal(agreed([4 * v for v in vectors]), 4 * merged)


def test_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EditError, match="no task vectors"):
        agreed([])
    with pytest.raises(EditError, match=r"\[2, 3\] and \[3, 2\]"):
        agreed([torch.ones(2, 3), torch.ones(3, 2)])
    with pytest.raises(NonFiniteError):
        agreed([torch.ones(2), torch.tensor([1.0, float("nan")])])


# Ext-Sub


def extracted_by_definition(bad: np.ndarray, good: np.ndarray) -> np.ndarray:
    rows = []
    for w2, w1 in zip(bad, good, strict=True):
        c = w1 / np.linalg.norm(w1) + w2 / np.linalg.norm(w2)
        c = c / np.linalg.norm(c)
        rows.append(w2 - (w2 @ c) * c)
    return np.stack(rows)


def test_ext_sub_is_the_published_edit_row_by_row() -> None:
    bad, good = matrix(10, 8, 1), matrix(10, 8, 2)
    wanted = extracted_by_definition(bad, good)
    assert np.linalg.norm(wanted - bad) > 0.5  # something is spared
    close(extracted(torch_of(bad), torch_of(good)), wanted, bad)
    # The authors' edit, with α: w1 − α w2 + α ⟨w2, c⟩ c.
    for alpha in (0.5, 2.0):
        published = good - alpha * bad + alpha * (bad - wanted)
        edit = torch_of(good) - alpha * extracted(torch_of(bad), torch_of(good))
        close(edit, published, published)


@given(seed=st.integers(0, 2**16), alpha=st.floats(0.1, 10))
def test_the_edit_keeps_the_experts_component_along_the_common_direction(
    seed: int, alpha: float
) -> None:
    bad, good = matrix(6, 9, seed), matrix(6, 9, seed + 1)
    c = good / np.linalg.norm(good, axis=1)[:, None] + bad / np.linalg.norm(bad, axis=1)[:, None]
    c /= np.linalg.norm(c, axis=1)[:, None]

    def along(rows: np.ndarray) -> np.ndarray:
        return (rows * c).sum(1)

    size = np.linalg.norm(good) + alpha * np.linalg.norm(bad)
    plain = good - alpha * bad
    assert np.abs(along(plain) - along(good)).max() > 1e-3  # subtraction alone changes it
    left = extracted(torch_of(bad), torch_of(good)).double().numpy()
    assert np.abs(along(good - alpha * left) - along(good)).max() <= FLOAT32 * size


@given(angle=st.floats(0.0, np.pi - 0.01), seed=st.integers(0, 2**16))
def test_what_is_left_of_a_row_is_the_sine_of_half_the_angle(angle: float, seed: int) -> None:
    q = np.linalg.qr(matrix(7, 2, seed))[0]
    good = 5 * q[:, :1].T
    bad = 0.3 * (np.cos(angle) * q[:, 0] + np.sin(angle) * q[:, 1])[None]
    left = extracted(torch.from_numpy(bad), torch.from_numpy(good))
    assert float(left.norm()) == pytest.approx(0.3 * np.sin(angle / 2), abs=1e-9)


def test_a_row_that_points_where_the_expert_does_is_left_alone() -> None:
    good = torch_of(matrix(5, 6, 3))
    assert float((2 * good).norm()) > 1
    assert float(extracted(2 * good, good).norm()) <= FLOAT32 * float(good.norm())


def test_opposite_and_zero_rows_share_nothing() -> None:
    good = torch_of(matrix(3, 6, 3))
    bad = torch_of(matrix(3, 6, 4))
    assert not torch.equal(extracted(bad, good), bad)
    bad[0] = -3 * good[0]
    good[1] = 0
    bad[2] = 0
    remaining = extracted(bad, good)
    assert torch.equal(remaining, bad)
    assert torch.isfinite(remaining).all()


def test_only_the_directions_of_the_expert_count() -> None:
    bad, good = torch_of(matrix(5, 6, 1)), torch_of(matrix(5, 6, 2))
    remaining = extracted(bad, good)
    assert not torch.equal(extracted(bad, -good), remaining)
    lengths = torch.tensor([0.25, 4.0, 64.0, 1.0, 0.5])[:, None]
    close(extracted(bad, lengths * good), remaining.double().numpy(), bad.double().numpy())
    # Of the vector's own length the result is a multiple.
    close(extracted(4 * bad, good), 4 * remaining.double().numpy(), 4 * bad.double().numpy())


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EditError, match="rows are compared"):
        extracted(torch.ones(3), torch.ones(3))
    with pytest.raises(EditError, match="same base"):
        extracted(torch.ones(3, 2), torch.ones(2, 3))
    with pytest.raises(NonFiniteError):
        extracted(torch.ones(1, 2), torch.tensor([[1.0, float("inf")]]))


# Ethos


def kept_by_definition(change: np.ndarray, weights: np.ndarray, threshold: float) -> np.ndarray:
    u, _, vh = np.linalg.svd(weights, full_matrices=False)
    entries = u.T @ change @ vh.T
    large = np.where(np.abs(entries) >= threshold * np.abs(entries).max(), entries, 0)
    return u @ large @ vh + (change - u @ entries @ vh)


@pytest.mark.parametrize("shape", SHAPES)
def test_ethos_keeps_the_large_entries_in_the_singular_basis(shape: tuple[int, int]) -> None:
    change, weights = matrix(*shape, 1), matrix(*shape, 2)
    wanted = kept_by_definition(change, weights, 0.3)
    if min(shape) > 1:
        assert np.linalg.norm(wanted - change) > 0.05 * np.linalg.norm(change)
    close(specific(torch_of(change), torch_of(weights), 0.3), wanted, change)


def test_square_weights_leave_exactly_the_published_filter() -> None:
    change, weights = matrix(16, 16, 1), matrix(16, 16, 2)
    u, _, vh = np.linalg.svd(weights)
    entries = u.T @ change @ vh.T
    kept = np.where(np.abs(entries) >= 0.03 * np.abs(entries).max(), entries, 0)
    assert 0 < (kept == 0).sum() < kept.size
    close(specific(torch_of(change), torch_of(weights)), u @ kept @ vh, change)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_kept_and_dropped_add_up_and_are_orthogonal(shape: tuple[int, int]) -> None:
    change, weights = torch_of(matrix(*shape, 5)), torch_of(matrix(*shape, 6))
    kept = specific(change, weights, 0.4)
    dropped = change - kept
    assert min(float(kept.norm()), float(dropped.norm())) > 0.1 * float(change.norm())
    inner = float((kept.double() * dropped.double()).sum())
    assert abs(inner) <= FLOAT32 * float(change.norm()) ** 2
    squares = float(kept.norm()) ** 2 + float(dropped.norm()) ** 2
    assert squares == pytest.approx(float(change.norm()) ** 2, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_filtering_twice_is_filtering_once(shape: tuple[int, int]) -> None:
    change, weights = torch_of(matrix(*shape, 5)), torch_of(matrix(*shape, 6))
    once = specific(change, weights, 0.4)
    assert float((once - change).norm()) > 0.1
    close(specific(once, weights, 0.4), once.double().numpy(), change.double().numpy())


def test_thresholds_at_both_ends() -> None:
    change, weights = torch_of(matrix(9, 9, 5)), torch_of(matrix(9, 9, 6))
    close(specific(change, weights, 0.0), change.double().numpy(), change.double().numpy())
    largest = specific(change, weights, 1.0)
    assert int(torch.linalg.matrix_rank(change)) == 9
    assert int(torch.linalg.matrix_rank(largest, rtol=1e-4)) == 1
    sizes = [float(specific(change, weights, t).norm()) for t in (0.0, 0.1, 0.3, 0.6, 1.0)]
    assert sizes == sorted(sizes, reverse=True)


def test_transposing_both_transposes_the_result() -> None:
    change, weights = torch_of(matrix(14, 6, 5)), torch_of(matrix(14, 6, 6))
    filtered = specific(change, weights, 0.4)
    assert float((filtered - change).norm()) > 0.1
    close(specific(change.T, weights.T, 0.4).T, filtered.double().numpy(), change.double().numpy())


def test_a_change_along_the_weights_own_components_stays_whole() -> None:
    """Its large entries are all there is; noise that is small in that basis goes."""
    weights = low_rank(12, 12, np.linspace(3, 1, 12), 3)
    u, _, vh = np.linalg.svd(weights)
    change = u[:, :3] @ np.diag([3.0, -2.0, 1.0]) @ vh[:3]
    noise = 0.01 * matrix(12, 12, 9)
    noisy = torch_of(change + noise)
    filtered = specific(noisy, torch_of(weights))
    before = np.linalg.norm(noisy.double().numpy() - change)
    assert np.linalg.norm(filtered.double().numpy() - change) < 0.2 * before


def test_a_zero_change_stays_zero() -> None:
    weights = torch_of(matrix(4, 4, 6))
    assert specific(torch_of(matrix(4, 4, 1)), weights).any()
    assert not specific(torch.zeros(4, 4), weights).any()


def test_ethos_refuses_what_makes_no_sense() -> None:
    with pytest.raises(EditError, match=r"threshold 1\.5"):
        specific(torch.ones(2, 2), torch.ones(2, 2), 1.5)
    with pytest.raises(EditError, match="same base"):
        specific(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(NonFiniteError):
        specific(torch.ones(2, 2), torch.full((2, 2), float("nan")))


def test_dtype_is_that_of_the_vector() -> None:
    vector, other = torch.randn(4, 4).bfloat16(), torch.randn(4, 4)
    assert agreed([vector, other]).dtype == torch.bfloat16
    assert extracted(vector, other).dtype == torch.bfloat16
    assert specific(vector, other).dtype == torch.bfloat16
