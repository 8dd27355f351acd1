from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import exact, low_rank, write_checkpoint
from weightsurgery.algebra.lowrank import LowRank, Rank
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import CheckpointError, NonFiniteError
from weightsurgery.vectors.deltas import FactorDelta, SumDelta
from weightsurgery.vectors.sources import open_vector, split_scale
from weightsurgery.vectors.task_vector import MappedChange, TaskVector

SHAPE = (12, 10)
# Sums of a few float32 numbers under 100.
FLOAT32 = 3e-5


def factors(seed: int, k: int = 3) -> LowRank:
    matrix = torch.from_numpy(low_rank(*SHAPE, np.linspace(2, 1, k), seed)).float()
    return truncated_svd(matrix, Rank(k)).factors


A = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
B = factors(2)
a = TaskVector.of(MappedChange({"w": A, "only a": A}, "a"))
b = TaskVector.of(MappedChange({"w": B, "only b": B}, "b"))


def value(vector: TaskVector, name: str = "w") -> np.ndarray:
    """The change as a matrix, by adding its rows to zeros."""
    delta = vector.at(name)
    out, zeros = torch.zeros(SHAPE), torch.zeros(SHAPE)
    if delta is None:  # no change
        return exact(out)
    for start in range(0, SHAPE[0], 5):
        stop = min(start + 5, SHAPE[0])
        delta.add_rows(out[start:stop], start, stop, 1.0, zeros[start:stop])
    return exact(out)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FLOAT32)


number = st.floats(-4, 4)


@given(c=number, d=number)
def test_vectors_form_a_vector_space(c: float, d: float) -> None:
    x, y = exact(A), exact(B.matrix())
    close(value(a), x)
    close(value(b), y)
    close(value(a + b), x + y)
    close(value(a - b), x - y)
    close(value(-a), -x)
    close(value(c * a), c * x)
    close(value(a * c), c * x)
    close(value(c * (a + d * b)), c * x + c * d * y)
    close(value(c * a + d * a), (c + d) * x)
    close(value((c * d) * b), c * d * y)
    close(value(a + (b - a)), y)


def test_a_tensor_only_one_term_changes_follows_that_term() -> None:
    close(value(a - 2 * b, "only a"), exact(A))
    close(value(a - 2 * b, "only b"), -2 * exact(B.matrix()))
    assert (a + b).at("neither") is None
    assert (0 * a).at("w") is None
    close(value(0 * a + b), exact(B.matrix()))


def test_combining_reads_nothing(tmp_path: Path) -> None:
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", {"w": A}))
    finetuned = write_checkpoint(tmp_path / "tuned", {"w": A + 1})
    vector = open_vector(base, [str(finetuned)])
    (finetuned / "model.safetensors").unlink()
    combined = 2 * (vector - 0.5 * vector)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        combined.at("w").add_rows(torch.zeros(SHAPE), 0, 12, 1.0, A)  # type: ignore[union-attr]


def test_label_says_how_it_was_combined() -> None:
    assert (a + 0.5 * b).label == "a + 0.5 b"


def test_factors_add_in_product_space() -> None:
    second = factors(3)
    combined = 0.5 * b - 2 * TaskVector.of(MappedChange({"w": second}))
    wanted = 0.5 * exact(B.matrix()) - 2 * exact(second.matrix())
    found = combined.at("w").factors()  # type: ignore[union-attr]
    assert found is not None
    assert found.rank == 6
    close(exact(found.matrix()), wanted)
    np.testing.assert_allclose(
        found.S.numpy(), np.linalg.svd(wanted, compute_uv=False)[:6], rtol=0, atol=FLOAT32
    )
    summed = exact(((0.5 * B.U * B.S) - (2 * second.U * second.S)) @ (B.V + second.V).T)
    assert np.linalg.norm(summed - wanted) > 1  # adding the factors is another matrix


def test_dense_terms_have_no_exact_factors() -> None:
    assert (a + b).at("w").factors() is None  # type: ignore[union-attr]
    wide = SumDelta(((1.0, FactorDelta(torch.randn(12, 11), torch.randn(10, 11))),))
    assert wide.factors() is None  # more than the matrix has rank


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("vector", [a, b, a + b], ids=["dense", "factors", "mixed"])
def test_truncated_is_numpys_svd_of_the_oriented_change(
    vector: TaskVector, transposed: bool
) -> None:
    matrix = value(vector)
    wanted = matrix.T if transposed else matrix
    delta = vector.at("w")
    assert delta is not None
    found = delta.truncated(
        lambda start, stop: torch.zeros(stop - start, SHAPE[1]),
        SHAPE,
        Rank(2),
        transposed=transposed,
    )
    u, s, vh = np.linalg.svd(wanted, full_matrices=False)
    assert found.factors.shape == wanted.shape
    close(exact(found.factors.matrix()), (u[:, :2] * s[:2]) @ vh[:2])
    assert found.kept == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["dense", "factors"])
def test_nan_in_a_change_names_the_tensor(kind: str, bad: float) -> None:
    change: torch.Tensor | LowRank = A.clone()
    if isinstance(change, torch.Tensor):
        change[3, 3] = bad
    if kind == "factors":
        change = LowRank(torch.full((12, 1), bad), torch.ones(1), torch.ones(10, 1))
    delta = TaskVector.of(MappedChange({"layer.w": change}, "mine")).at("layer.w")
    with pytest.raises(NonFiniteError, match=r"'layer\.w'.*mine"):
        delta.truncated(  # type: ignore[union-attr]
            lambda start, stop: torch.zeros(stop - start, 10), SHAPE, Rank(2)
        )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a/b", ("a/b", 1.0)),
        ("a/b:0.5", ("a/b", 0.5)),
        ("a/b:-2", ("a/b", -2.0)),
        ("a/b@v1:1e-3", ("a/b@v1", 1e-3)),
        ("c:/models", ("c:/models", 1.0)),
    ],
)
def test_scale_behind_a_name(text: str, wanted: tuple[str, float]) -> None:
    assert split_scale(text) == wanted


def test_an_existing_path_wins_over_a_scale(tmp_path: Path) -> None:
    odd = tmp_path / "run:2"
    assert split_scale(str(odd)) == (str(tmp_path / "run"), 2.0)
    odd.mkdir()
    assert split_scale(str(odd)) == (str(odd), 1.0)
