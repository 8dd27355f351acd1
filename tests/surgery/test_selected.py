"""How much of a vector an edit selects is measured, or estimated from a few rows."""

from pathlib import Path

import pytest
import torch

from tests.conftest import write_checkpoint
from weightsurgery import Negate, Selection, TaskVector, apply
from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.surgery.notices import selected_notices
from weightsurgery.surgery.selected import selected_share
from weightsurgery.vectors.task_vector import MappedChange

ROWS = 4096
NAMES = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)]


def base_of(root: Path, rows: int = ROWS) -> Checkpoint:
    tensors = {name: torch.randn(rows, 64) for name in NAMES}
    return Checkpoint.open(write_checkpoint(root / "base", tensors))


def vector(rows: int = ROWS) -> TaskVector:
    """Three changes whose sizes are 1, 2 and 3."""
    return TaskVector.of(
        MappedChange({name: n * torch.randn(rows, 64) / 64 for n, name in enumerate(NAMES, 1)})
    )


def test_the_estimate_is_near_the_truth(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    found = selected_share(base, vector(), NAMES[:2])
    assert found["share"] == pytest.approx(5 / 14, rel=0.05)
    assert (found["tensors"], found["of"], found["estimated"]) == (2, 3, True)


def test_small_tensors_and_factors_are_measured(tmp_path: Path) -> None:
    base = base_of(tmp_path, 8)
    change = vector(8)
    norms = [float(t.square().sum()) for t in change.terms[0][1].deltas.values()]
    found = selected_share(base, change, NAMES[1:])
    assert found["share"] == pytest.approx(sum(norms[1:]) / sum(norms), rel=1e-3)
    eye = torch.eye(8)
    factors = {n: LowRank(eye[:, :1], torch.tensor([float(k)]), torch.eye(64)[:, :1])
               for k, n in enumerate(NAMES, 1)}  # fmt: skip
    both = TaskVector.of(MappedChange(factors)) + 0.5 * TaskVector.of(MappedChange(factors))
    found = selected_share(base, both, NAMES[:1])
    assert found == {"tensors": 1, "of": 3, "share": 0.07143, "estimated": False}


def test_all_of_it_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(tmp_path)
    monkeypatch.setattr(Checkpoint, "rows", None)
    found = selected_share(base, vector(), NAMES)
    assert found == {"tensors": 3, "of": 3, "share": 1.0, "estimated": False}


def test_little_of_it_is_said(tmp_path: Path) -> None:
    base = base_of(tmp_path, 8)
    change = vector(8)
    for layers, said in (("0-1", True), ("0-", False)):
        record = apply(
            Negate(change), base, tmp_path / f"out{said}", selection=Selection(layers=layers),
            allow_unrelated=True,
        ).record  # fmt: skip
        assert bool(selected_notices(record)) == said
    (line,) = selected_notices(
        apply(Negate(change), base, tmp_path / "o", selection=Selection(layers="0-1")).record
    )
    assert "(2 of 3)" in line
