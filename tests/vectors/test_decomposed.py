"""Decomposing task vectors: never dense where there are factors, never twice, never mixed up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.algebra.largest import Largest
from tests.conftest import low_rank, snapshot, write_checkpoint
from weightsurgery import Project, Rank, apply, open_vector
from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import NonFiniteError
from weightsurgery.surgery.discriminating import Decomposed
from weightsurgery.vectors import deltas
from weightsurgery.vectors.deltas import FactorDelta, SumDelta
from weightsurgery.vectors.task_vector import MappedChange, TaskVector

M, N = 600, 450
CPU = torch.device("cpu")


def adapter(rank: int, seed: int, true_rank: int | None = None) -> FactorDelta:
    """Factors as LoRA has them: of no particular length or angle."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(M, rank, generator=generator) * torch.logspace(-3, 3, rank)
    right = torch.randn(N, rank, generator=generator)
    if true_rank is not None:
        left = left[:, :true_rank] @ torch.randn(true_rank, rank, generator=generator)
    return FactorDelta(left, right)


def unread(start: int, stop: int) -> torch.Tensor:
    raise AssertionError("the base is not needed")


def dense(delta: SumDelta) -> np.ndarray:
    terms = [(c, d.left.double(), d.right.double()) for c, d in delta.terms]
    return sum(c * left @ right.T for c, left, right in terms).numpy()


CASES = {
    "one": SumDelta(((1.0, adapter(8, 1)),)),
    "three": SumDelta(((1.0, adapter(8, 1)), (-0.5, adapter(4, 2)), (2.0, adapter(16, 3)))),
    "redundant": SumDelta(((1.0, adapter(8, 1, true_rank=3)),)),
    "twice": SumDelta(((1.0, adapter(8, 1)), (1.5, adapter(8, 1)))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [1, 4, 64], ids=lambda k: f"rank {k}")
@pytest.mark.parametrize("transposed", [False, True])
def test_adapters_never_become_matrices(case: str, rank: int, transposed: bool) -> None:
    delta = CASES[case]
    factors = sum(each.left.shape[1] for _, each in delta.terms)
    with Largest() as seen:
        delta.matrix(lambda start, stop: torch.zeros(stop - start, N), (M, N))
    assert seen.numel == M * N  # the watch sees what it is to see
    with Largest() as seen:
        found = delta.truncated(unread, (M, N), Rank(rank), transposed=transposed)
    assert 0 < seen.numel <= max(M, N) * factors  # the factors side by side, no more
    assert 4 * seen.numel < M * N

    product = dense(delta).T if transposed else dense(delta)
    u, s, vh = np.linalg.svd(product, full_matrices=False)
    kept = min(rank, int((s > 1e-6 * s[0]).sum()))
    best = (u[:, :kept] * s[:kept]) @ vh[:kept]
    assert found.factors.rank == min(rank, int((s > 1.2e-7 * s[0]).sum()))
    error = np.linalg.norm(found.factors.matrix().double().numpy() - best)
    assert error <= 2e-6 * s[0]
    assert found.total == pytest.approx(float((s**2).sum()), rel=1e-6)
    assert found.effective_rank == pytest.approx(float((s**2).sum() ** 2 / (s**4).sum()), rel=1e-5)


NAMES = [f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qkvo"]
SIZES = [(700, 800), (300, 800), (40, 800), (800, 700)]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A base and three fine-tunes; matrices of very different sizes, one above another's memory."""
    tensors = {name: torch.randn(size) for name, size in zip(NAMES, SIZES, strict=True)}
    found = {"base": write_checkpoint(tmp_path / "base", tensors)}
    for seed, tune in enumerate(("forget", "keep", "other")):
        finetuned = {
            name: t + torch.from_numpy(low_rank(*t.shape, 0.5 ** np.arange(12.0), seed)).float()
            for name, t in tensors.items()
        }
        found[tune] = write_checkpoint(tmp_path / tune, finetuned)
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    inner = deltas.truncated_svd

    def counting(matrix: torch.Tensor, *rest: object, **more: object) -> Truncation:
        shapes.append(tuple(matrix.shape))
        return inner(matrix, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(deltas, "truncated_svd", counting)
    return shapes


def decomposed(models: dict[str, Path], forget: str, *keeps: str) -> Decomposed:
    base = Checkpoint.open(models["base"])
    # Opened again each time, as the command line does.
    first, *rest = (open_vector(base, [str(models[each])]) for each in (forget, *keeps))
    found = Project(first, tuple(rest), Rank(6)).decompose(base, NAMES[0], CPU)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("names", "times"),
    [
        (("forget", "keep"), 2),
        (("forget", "keep", "keep"), 2),
        (("forget", "keep", "forget"), 2),
        (("forget", "keep", "other", "keep"), 3),
    ],
)
def test_a_vector_named_twice_is_decomposed_once(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], times: int
) -> None:
    shapes = counted(monkeypatch)
    shared = decomposed(models, *names)
    assert len(shapes) == times
    # Before: each by itself; and it is the same.
    monkeypatch.setattr(TaskVector, "identity", lambda self: object())
    apart = decomposed(models, *names)
    assert len(shapes) == times + len(names)
    for one, other in zip((shared.task, *shared.keeps), (apart.task, *apart.keeps), strict=True):
        assert torch.equal(one.factors.U, other.factors.U)
        assert torch.equal(one.factors.V, other.factors.V)


def test_only_the_same_changes_of_the_same_files_are_one_vector(models: dict[str, Path]) -> None:
    base = Checkpoint.open(models["base"])
    first, again, keep = (
        open_vector(base, [str(models[each])]) for each in ("forget", "forget", "keep")
    )
    assert first.identity() == again.identity()
    assert (first - 0.5 * keep).identity() == (again - 0.5 * keep).identity()
    assert first.identity() != keep.identity()
    assert first.identity() != (2 * again).identity()
    assert first.identity() != (first + first).identity()
    lenient = open_vector(base, [str(models["forget"])], missing="base")
    assert first.identity() != lenient.identity()
    one, other = (TaskVector.of(MappedChange({"w": torch.ones(2, 2)})) for _ in range(2))
    assert one.identity() == one.identity()
    assert one.identity() != other.identity()  # their content is not read to tell


def test_memory_used_again_leaves_what_was_found_alone(models: dict[str, Path]) -> None:
    base = Checkpoint.open(models["base"])
    vector = open_vector(base, [str(models["forget"])])

    def one(name: str) -> LowRank:
        delta = vector.at(name)
        assert delta is not None
        m, n = base.entry(name).shape
        return delta.truncated(lambda a, b: base.rows(name, a, b), (m, n), Rank(6)).factors

    here = [one(name) for name in NAMES]
    with ThreadPoolExecutor(1) as pool:
        larger_buffer = pool.submit(lambda: deltas._memory.floats(3, 2).data_ptr()).result()
        there = [pool.submit(one, name).result() for name in NAMES]
        again = pool.submit(one, NAMES[1]).result()
        first_buffer, second_buffer = (
            pool.submit(lambda: deltas._memory.floats(3, 2).data_ptr()).result() for _ in range(2)
        )
    assert first_buffer == second_buffer  # it is the same memory
    assert first_buffer != larger_buffer  # before: a larger one was needed meanwhile
    for wanted, found in zip([*here, here[1]], [*there, again], strict=True):
        assert torch.equal(wanted.U, found.U)
        assert torch.equal(wanted.S, found.S)
        assert torch.equal(wanted.V, found.V)
    assert deltas._memory._buffer is None  # the main thread keeps none


def test_nan_in_one_matrix_does_not_reach_the_next() -> None:
    bad, good = torch.randn(60, 50), torch.randn(50, 40)
    bad[7, 7] = torch.nan
    vector = TaskVector.of(MappedChange({"bad": bad, "good": good}))

    def one(name: str, shape: tuple[int, int]) -> Truncation:
        zeros = lambda start, stop: torch.zeros(stop - start, shape[1])  # noqa: E731
        return vector.at(name).truncated(zeros, shape, Rank(3))  # type: ignore[union-attr]

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(NonFiniteError):
            pool.submit(one, "bad", (60, 50)).result()
        found = pool.submit(one, "good", (50, 40)).result()
    assert torch.equal(found.factors.U, one("good", (50, 40)).factors.U)


def test_workers_and_what_they_keep_change_no_byte(models: dict[str, Path], tmp_path: Path) -> None:
    base = Checkpoint.open(models["base"])
    vectors = [open_vector(base, [str(models[each])]) for each in ("forget", "keep", "other")]
    edit = Project(vectors[0], tuple(vectors[1:]), Rank(6))
    for workers in (1, 2, 4):
        done = apply(edit, base, tmp_path / f"out{workers}", workers=workers)
        assert len(done.record.tensors) == len(NAMES)
    assert snapshot(tmp_path / "out1") == snapshot(tmp_path / "out2") == snapshot(tmp_path / "out4")
    edit = Project(vectors[0], tuple(vectors[1:]), Rank(6), seed=1)
    apply(edit, base, tmp_path / "seed1", workers=1)  # before: the seed does change bytes
    assert snapshot(tmp_path / "out1") != snapshot(tmp_path / "seed1")
