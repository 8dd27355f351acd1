from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from tests.conftest import low_rank
from weightsurgery.algebra.lowrank import (
    DonohoGavish,
    Energy,
    LowRank,
    Rank,
    orth,
    rank_by,
    recompress,
)
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.errors import EditError

# float32 input and output: errors are a modest multiple of its eps, 1.2e-7, relative to σ₁.
FLOAT32 = 2e-6


def spectrum(kind: str, count: int) -> np.ndarray:
    if kind == "spiked":
        return np.r_[np.linspace(10, 5, 12), np.full(count - 12, 0.3)]
    if kind == "exact rank 7":
        return np.r_[np.linspace(3, 1, 7), np.zeros(count - 7)]
    return np.arange(1.0, count + 1) ** -1.0  # power law


def is_orthonormal(columns: torch.Tensor, tolerance: float = 5e-6) -> bool:
    gram = columns.double().T @ columns.double()
    return float((gram - torch.eye(gram.shape[0], dtype=gram.dtype)).abs().max()) < tolerance


@pytest.mark.parametrize("kind", ["spiked", "exact rank 7", "power law"])
@pytest.mark.parametrize("shape", [(420, 300), (300, 420)])
@pytest.mark.parametrize("path", ["krylov", "exact"])
def test_leading_triplets_are_numpys(kind: str, shape: tuple[int, int], path: str) -> None:
    k = 12
    values = spectrum(kind, 300)
    matrix = torch.from_numpy(low_rank(*shape, values, seed=3)).float()
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    svd = truncated_svd(matrix, Rank(k), exact_up_to=0 if path == "krylov" else 512)
    factors = svd.factors

    assert (svd.residual == 0) == (path == "exact")  # the path that was meant was taken
    np.testing.assert_allclose(factors.S.numpy(), s[:k], rtol=0, atol=FLOAT32 * s[0])
    assert is_orthonormal(factors.U)
    assert is_orthonormal(factors.V)
    # The best approximation of that rank, not only its values: Eckart-Young.
    best = (u[:, :k] * s[:k]) @ vh[:k]
    error = np.linalg.norm(matrix.double().numpy() - factors.matrix().double().numpy())
    assert error <= np.linalg.norm(matrix.double().numpy() - best) * (1 + 1e-4) + FLOAT32 * s[0] * k
    assert svd.total == pytest.approx(float((s**2).sum()), rel=1e-6)
    assert svd.kept == pytest.approx(float((s[:k] ** 2).sum() / (s**2).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["spiked", "exact rank 7", "power law"])
def test_residual_bounds_the_error_of_every_singular_value(kind: str) -> None:
    matrix = torch.from_numpy(low_rank(400, 330, spectrum(kind, 330), seed=5)).float()
    s = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    svd = truncated_svd(matrix, Rank(16), exact_up_to=0)
    worst = np.abs(svd.factors.S.double().numpy()[:, None] - s).min(1).max() / s[0]
    assert svd.residual > 0
    assert worst <= np.sqrt(2) * svd.residual


@pytest.mark.parametrize("last", [1e-3, 1e-5, 3e-6, 1e-6, 1e-7, 0.0])
def test_krylov_factors_stay_orthonormal_however_small_the_last_one(last: float) -> None:
    values = np.r_[np.geomspace(1, last, 10) if last else np.r_[1.0, np.zeros(9)], np.zeros(290)]
    matrix = torch.from_numpy(low_rank(360, 300, values, seed=7)).float()
    factors = truncated_svd(matrix, Rank(12), exact_up_to=0).factors
    assert factors.rank == 12
    assert is_orthonormal(factors.U, 1e-4)
    assert is_orthonormal(factors.V, 1e-4)


def test_result_is_a_function_of_the_seed() -> None:
    matrix = torch.from_numpy(low_rank(320, 300, spectrum("power law", 300), seed=9)).float()
    first, again, other = (truncated_svd(matrix, Rank(8), seed=s, exact_up_to=0) for s in (1, 1, 2))
    assert torch.equal(first.factors.U, again.factors.U)
    assert torch.equal(first.factors.S, again.factors.S)
    assert not torch.equal(first.factors.U, other.factors.U)


@pytest.mark.parametrize("exact_up_to", [0, 512])
@pytest.mark.parametrize("rule", [Rank(3), Energy(0.9), DonohoGavish()])
def test_zero_matrix_keeps_its_shape(rule: Rank | Energy | DonohoGavish, exact_up_to: int) -> None:
    svd = truncated_svd(torch.zeros(260, 250), rule, exact_up_to=exact_up_to)
    assert svd.factors.shape == (260, 250)
    assert svd.factors.rank >= 1
    assert float(svd.factors.matrix().abs().max()) == 0
    assert svd.kept == 1


def test_rank_beyond_the_matrix_is_the_whole_matrix() -> None:
    matrix = torch.randn(9, 5)
    svd = truncated_svd(matrix, Rank(64))
    assert svd.factors.rank == 5
    torch.testing.assert_close(svd.factors.matrix(), matrix, rtol=0, atol=1e-5)


@pytest.mark.parametrize("exact_up_to", [0, 512])
@pytest.mark.parametrize("fraction", [0.5, 0.9, 1.0])
def test_energy_keeps_the_fewest_factors(fraction: float, exact_up_to: int) -> None:
    matrix = torch.from_numpy(low_rank(500, 450, np.r_[1 / np.arange(1.0, 21)], seed=2)).float()
    s = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    svd = truncated_svd(matrix, Energy(fraction), exact_up_to=exact_up_to)
    if fraction == 1:
        assert svd.kept == pytest.approx(1, abs=1e-6)
        return
    held = np.cumsum(s**2) / (s**2).sum()
    assert svd.factors.rank == int(np.argmax(held >= fraction)) + 1


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (256, 256)])
@pytest.mark.parametrize("planted", [1, 6])
def test_donoho_gavish_recovers_a_planted_rank(shape: tuple[int, int], planted: int) -> None:
    rng = np.random.default_rng(planted)
    noise = 0.01 * rng.standard_normal(shape)
    edge = 0.01 * (np.sqrt(shape[0]) + np.sqrt(shape[1]))  # of the noise's spectrum
    signal = low_rank(*shape, np.linspace(3, 2, planted) * edge, seed=planted)
    assert np.linalg.matrix_rank(signal + noise) == min(shape)  # counting does not find it
    svd = truncated_svd(torch.from_numpy(signal + noise).float(), DonohoGavish())
    assert svd.factors.rank == planted


def test_donoho_gavish_takes_no_rounding_for_signal() -> None:
    matrix = torch.from_numpy(low_rank(200, 150, np.linspace(2, 1, 5), seed=1)).float()
    assert np.linalg.matrix_rank(matrix.double().numpy()) == 150  # of rounding, to float64
    assert truncated_svd(matrix, DonohoGavish()).factors.rank == 5


@pytest.mark.parametrize("rule", [Rank, Energy])
@pytest.mark.parametrize("value", [0, -1])
def test_senseless_rules_are_refused(rule: type, value: int) -> None:
    with pytest.raises(EditError):
        rule(value)


def test_rules_on_exact_factors() -> None:
    singular = torch.tensor([4.0, 2.0, 1.0])
    assert [rank_by(singular, 21.0, Rank(k)) for k in (1, 3, 9)] == [1, 3, 3]
    assert [rank_by(singular, 21.0, Energy(e)) for e in (0.5, 16 / 21, 0.9, 1.0)] == [1, 1, 2, 3]
    assert rank_by(singular, 21.0, DonohoGavish()) == 3


@given(
    d=st.integers(1, 40),
    p=st.integers(0, 12),
    extra=st.integers(0, 6),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_orth_spans_the_columns_and_reveals_their_rank(
    d: int, p: int, extra: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    independent = rng.standard_normal((d, min(p, d)))
    mixed = independent @ rng.standard_normal((independent.shape[1], extra))
    columns = np.concatenate([independent * scale, mixed, np.zeros((d, 1))], 1)
    basis = orth(torch.from_numpy(columns)).numpy()
    rank = np.linalg.matrix_rank(independent) if independent.size else 0
    assert basis.shape == (d, rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), rtol=0, atol=1e-12)
    if rank:
        assert subspace_angles(basis, independent).max() < 1e-5  # float32 tolerance


def test_orth_counts_a_short_direction_like_a_long_one() -> None:
    columns = torch.eye(5)[:, :2] * torch.tensor([1.0, 1e-12])
    assert torch.linalg.matrix_rank(columns) == 1  # by size it would be lost
    assert orth(columns).shape == (5, 2)


@given(
    m=st.integers(1, 20),
    n=st.integers(1, 20),
    p=st.integers(1, 8),
    q=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_recompress_is_the_svd_of_the_product(m: int, n: int, p: int, q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, middle, right = (rng.standard_normal(s) for s in ((m, p), (p, q), (n, q)))
    product = left @ middle @ right.T
    factors = recompress(*(torch.from_numpy(x) for x in (left, middle, right)))
    np.testing.assert_allclose(
        factors.matrix().numpy(), product, rtol=0, atol=1e-6 * np.linalg.norm(product)
    )
    s = np.linalg.svd(product, compute_uv=False)
    np.testing.assert_allclose(factors.S.numpy(), s[: factors.rank], rtol=0, atol=1e-12 * s[0])
    assert factors.rank == (s > s[0] * 1e-6).sum()  # not p or q: only what there is
    assert is_orthonormal(factors.U)
    assert is_orthonormal(factors.V)
    assert recompress(*(torch.from_numpy(x) for x in (left, middle, right)), 1).rank == 1


def test_factors_describe_their_matrix() -> None:
    matrix = torch.randn(6, 4)
    factors = truncated_svd(matrix, Rank(4)).factors
    assert factors.shape == (6, 4)
    assert factors.energy == pytest.approx(float(matrix.double().square().sum()), rel=1e-6)
    torch.testing.assert_close(factors.rows(2, 5), matrix[2:5], rtol=0, atol=1e-6)
    assert isinstance(factors.truncated(2), LowRank)
    assert factors.truncated(2).rank == 2
    assert factors.to("cpu", torch.float64).U.dtype == torch.float64
