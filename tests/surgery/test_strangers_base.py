"""What a stranger's base lays beside its weights, and what of it comes into an output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import verify
from weightsurgery.errors import CorruptCheckpointError, OutputError
from weightsurgery.surgery.apply import Applied, Storage, apply
from weightsurgery.surgery.edits import Negate
from weightsurgery.vectors.sources import open_vector

from ..conftest import left_behind, read_tensors, snapshot, write_checkpoint

W = {"w": torch.arange(64.0).reshape(8, 8) / 64}


def negated(root: Path, storage: Storage | None = None) -> Applied:
    with Checkpoint.open(root / "base") as base:
        edit = Negate(open_vector(base, [str(root / "ft")]))
        return apply(edit, base, root / "out", storage=storage)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "ft", {"w": W["w"] + 1})
    return write_checkpoint(tmp_path / "base", W, 1, {"a": 1})


@pytest.mark.parametrize("shard", ["notice.safetensors", "LICENSE.safetensors"])
def test_a_shard_named_like_a_licence_is_edited(tmp_path: Path, base: Path, shard: str) -> None:
    (base / "model.safetensors").rename(base / shard)
    (base / "LICENSE.bin").write_bytes(b"a pickle")
    (base / "NOTICE.pt").write_bytes(b"a pickle")
    negated(tmp_path)
    assert torch.equal(read_tensors(tmp_path / "out")["w"], W["w"] - 1)
    assert set(snapshot(tmp_path / "out")) == {shard, "config.json", "weightsurgery.json"}
    verify(tmp_path / "out")


def test_so_is_one_that_an_index_names_below(tmp_path: Path, base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "sub").mkdir()
    save_file(W, base / "sub" / "COPYING.safetensors")
    index = {"metadata": {}, "weight_map": {"w": "sub/COPYING.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "sub" / "COPYING").write_text("a licence")
    negated(tmp_path)
    out = snapshot(tmp_path / "out")
    assert out["sub/COPYING.safetensors"] != snapshot(base)["sub/COPYING.safetensors"]
    assert out["sub/COPYING"] == b"a licence"


def test_nothing_is_copied_over_what_was_written(tmp_path: Path, base: Path, monkeypatch) -> None:
    """Should the rule for companions ever let one through."""
    monkeypatch.setattr("weightsurgery.checkpoint.companions.companion_kind", lambda name: "config")
    with pytest.raises(OutputError) as error:
        negated(tmp_path)
    assert "model.safetensors" in error.value.what
    assert left_behind(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["env.txt", "LICENSE", "config.json", "vocab.txt", "README.md"])
def test_links_of_a_base_carry_nothing_away(tmp_path: Path, base: Path, name: str) -> None:
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to("/proc/self/environ")
    if name in ("env.txt", "README.md"):  # no companions anyway
        negated(tmp_path)
        assert name not in snapshot(tmp_path / "out")
        return
    with pytest.raises(CorruptCheckpointError) as error:
        negated(tmp_path)
    assert str(base / name) in error.value.what
    assert left_behind(tmp_path / "out") == []


def test_the_index_neither(tmp_path: Path, base: Path) -> None:
    index = {"metadata": {}, "weight_map": {"w": "model.safetensors"}, "token": "hf_secret"}
    (tmp_path / "elsewhere.json").write_text(json.dumps(index))
    (base / "model.safetensors.index.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CorruptCheckpointError, match="index"):
        negated(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path, base: Path) -> None:
    os.mkfifo(base / "LICENSE")
    with pytest.raises(CorruptCheckpointError, match="no plain file"):
        negated(tmp_path)


def test_code_comes_along_where_it_is_named_and_asked_for(tmp_path: Path, base: Path) -> None:
    config = {"auto_map": {"AutoModelForCausalLM": "modeling_x.Model"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "modeling_x.py").write_text("class Model: ...")
    (base / "usercustomize.py").write_text("print('planted')")
    done = negated(tmp_path)
    assert not [name for name in snapshot(tmp_path / "out") if name.endswith(".py")]
    assert any("modeling_x.py" in text and "--with-code" in text for text in done.notices)
    (tmp_path / "out").rename(tmp_path / "without")
    negated(tmp_path, Storage(code=True))
    names = [name for name in snapshot(tmp_path / "out") if name.endswith(".py")]
    assert names == ["modeling_x.py"]
