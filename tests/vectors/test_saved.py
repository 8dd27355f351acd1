from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import exact, left_behind, read_tensors, same_bytes, write_checkpoint
from weightsurgery.algebra.lowrank import LowRank, Rank
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import MismatchError, OutputError, VectorError, VerificationError
from weightsurgery.surgery.apply import Storage
from weightsurgery.surgery.changes import DenseChange, OtherChange, changes_of
from weightsurgery.surgery.edit import Run
from weightsurgery.surgery.edits import Negate
from weightsurgery.surgery.plan import plan_checkpoint
from weightsurgery.vectors.saved import SavedChange, VectorWriter, is_saved_vector
from weightsurgery.vectors.sources import open_change, open_vector

DENSE = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
FACTORS = truncated_svd(
    torch.randn(8, 4, generator=torch.Generator().manual_seed(2)), Rank(2)
).factors
SCALAR = torch.tensor(0.25)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    tensors = {"a": torch.zeros(6, 5), "b": torch.zeros(8, 4), "s": torch.tensor(1.0)}
    return Checkpoint.open(write_checkpoint(tmp_path / "base", tensors))


def save(
    target: Path, changes: dict[str, torch.Tensor | LowRank], shard_bytes: int = 1 << 28
) -> Path:
    with VectorWriter(target, [], shard_bytes=shard_bytes) as writer:
        for name, change in changes.items():
            writer.add(name, change)
        writer.commit(EditRecord("task-vector", parameters={"from": "a test"}))
    return target


def value(change: SavedChange, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    out = torch.zeros(shape)
    delta = change.at(name)
    assert delta is not None
    delta.add_rows(out, 0, shape[0], 1.0, torch.zeros(shape))
    return out


@pytest.mark.parametrize("shard_bytes", [1, 100, 1 << 28])
def test_what_was_saved_is_read(base: Checkpoint, tmp_path: Path, shard_bytes: int) -> None:
    assert not (tmp_path / "v").exists()
    target = save(tmp_path / "v", {"a": DENSE, "b": FACTORS, "s": SCALAR}, shard_bytes)
    change = open_change(base, str(target))
    assert isinstance(change, SavedChange)
    assert change.names == ("a", "b", "s")
    assert torch.equal(value(change, "a", (6, 5)), DENSE)
    torch.testing.assert_close(value(change, "b", (8, 4)), FACTORS.matrix(), rtol=0, atol=1e-6)
    assert torch.equal(value(change, "s", (1,)), SCALAR.reshape(1))
    assert change.at("c") is None
    assert len(list(target.glob("*.safetensors"))) == {1: 3, 100: 3}.get(shard_bytes, 1)
    assert left_behind(target) == ["v"]


def test_what_it_changes_is_told_without_reading(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = save(tmp_path / "v", {"a": DENSE, "b": FACTORS})
    tensors = {"a": DENSE, "b": FACTORS.matrix(), "s": torch.tensor(2.0)}
    tuned = write_checkpoint(tmp_path / "tuned", tensors)
    saved, whole = open_vector(base, [str(target)]), open_vector(base, [str(tuned)])

    def fail(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(Checkpoint, "read_into", fail)
    with pytest.raises(AssertionError, match="read"):
        saved.at("b")
    assert [saved.rows_at(name) for name in "abs"] == [True, False, None]
    assert [whole.rows_at(name) for name in "abs"] == [True, True, True]
    assert [(saved + whole).rows_at(name) for name in "abs"] == [True, False, True]
    assert [(0 * saved + whole).rows_at(name) for name in "abs"] == [True, True, True]
    edit = Negate(saved)
    plan = plan_checkpoint(edit, base, tmp_path / "out", Storage(), Run(Selection("all")))
    changes = changes_of(edit, base, plan)
    assert changes is not None
    assert {name: type(each) for name, each in changes.items()} == {
        "a": DenseChange, "b": OtherChange
    }  # fmt: skip


def test_the_directory_is_plain_safetensors(tmp_path: Path) -> None:
    tensors = read_tensors(save(tmp_path / "v", {"a": DENSE.bfloat16(), "b": FACTORS}))
    assert set(tensors) == {"a", "b::U", "b::S", "b::V"}
    assert same_bytes(tensors["a"], DENSE.bfloat16())
    assert exact(tensors["b::S"]).tolist() == exact(FACTORS.S).tolist()


def test_record_tells_a_vector_from_a_checkpoint_and_verifies(tmp_path: Path) -> None:
    target = save(tmp_path / "v", {"a": DENSE})
    assert is_saved_vector(target)
    assert not is_saved_vector(write_checkpoint(tmp_path / "c", {"a": DENSE}))
    assert verify(target).parameters == {"from": "a test"}
    shard = target / "vector-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(VerificationError, match="vector-00001"):
        verify(target)


def test_another_base_is_refused_by_name_of_the_tensor(tmp_path: Path) -> None:
    target = save(tmp_path / "v", {"a": DENSE, "b": FACTORS})
    other = Checkpoint.open(write_checkpoint(tmp_path / "o", {"a": DENSE, "b": torch.ones(4, 8)}))
    with pytest.raises(MismatchError, match=r"'b' of shape \[8, 4\].*\[4, 8\]"):
        open_change(other, str(target))
    smaller = Checkpoint.open(write_checkpoint(tmp_path / "s", {"a": DENSE}))
    with pytest.raises(MismatchError, match="'b'"):
        open_change(smaller, str(target))
    allowed = open_change(smaller, str(target), missing="base")
    assert isinstance(allowed, SavedChange)
    assert allowed.names == ("a",)


def test_half_a_factor_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "v"
    with VectorWriter(target, []) as writer:
        writer.add("b::U", FACTORS.U)
        writer.add("b::S", FACTORS.S)
        writer.commit(EditRecord("task-vector"))
    with pytest.raises(VectorError, match="'b' are incomplete"):
        open_change(base, str(target))


def test_nothing_to_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="nothing to save"):
        save(tmp_path / "v", {})
    assert left_behind(tmp_path / "v") == []


def test_an_error_while_saving_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with VectorWriter(tmp_path / "v", [], shard_bytes=1) as writer:
            writer.add("a", DENSE)
            assert left_behind(tmp_path / "v") == [".v.ws-partial"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert left_behind(tmp_path / "v") == []


def test_an_existing_vector_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = save(tmp_path / "v", {"a": DENSE})
    with pytest.raises(OutputError, match="exists"):
        save(target, {"a": 2 * DENSE})
    assert torch.equal(read_tensors(target)["a"], DENSE)
    with VectorWriter(target, [], overwrite=True) as writer:
        writer.add("a", 2 * DENSE)
        writer.commit(EditRecord("task-vector"))
    assert torch.equal(read_tensors(target)["a"], 2 * DENSE)
    assert json.loads((target / "weightsurgery.json").read_text())["kind"] == "task-vector"
