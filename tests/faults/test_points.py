"""Points of a training: one that is not as it was written is not gone on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from weightsurgery.errors import OutputError
from weightsurgery.learning.points import last_point, save_tensors, seal, unseal, writing


def point(place: Path, step: int) -> Path:
    found = place / f"checkpoint-{step}"
    (found / "deep").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "deep/rng.pth", "trainer_state.json"):
        (found / name).write_bytes(f"{name} {step}".encode() * 50)
    return found


def test_a_point_counts_once_it_is_sealed(tmp_path: Path) -> None:
    first = point(tmp_path, 4)
    assert last_point(tmp_path) is None  # all of its files are there, and may yet be lost
    seal(first, None)
    assert last_point(tmp_path) == first
    second = point(tmp_path, 10)
    assert last_point(tmp_path) == first
    seal(second, None)
    assert last_point(tmp_path) == second
    assert not first.exists()
    third = point(tmp_path, 12)
    seal(third, best=second)
    assert last_point(tmp_path) == third
    assert second.exists()
    unseal(third)
    assert last_point(tmp_path) == second


@pytest.mark.parametrize("harm", [
    lambda at: (at / "optimizer.pt").write_bytes(b""),
    lambda at: (at / "model.safetensors").write_bytes(b"model.safetensors 8" * 49 + bytes(19)),
    lambda at: (at / "deep/rng.pth").unlink(),
    lambda at: (at / "pytorch_model.bin").write_bytes(b"more"),
    lambda at: (at / "whole.json").write_bytes(b""),
    lambda at: (at / "whole.json").write_bytes(b"[]"),
    lambda at: (at / "whole.json").unlink(),
])  # fmt: skip
def test_one_that_was_changed_does_not(tmp_path: Path, harm) -> None:  # type: ignore[no-untyped-def]
    before = point(tmp_path, 6)
    seal(before, None)
    at = point(tmp_path, 8)
    seal(at, best=before)
    assert last_point(tmp_path) == at
    harm(at)
    assert last_point(tmp_path) == before


def test_tensors_are_whole_under_their_name(tmp_path: Path) -> None:
    file = tmp_path / "a/values.safetensors"
    save_tensors({"x": torch.ones(3)}, file, {})
    whole = file.read_bytes()
    (tmp_path / "a/values.partial").mkdir()
    with pytest.raises(OutputError) as error, writing(tmp_path):
        save_tensors({"x": torch.zeros(3)}, file, {})
    assert "run the same command again" in error.value.remedy
    assert file.read_bytes() == whole
