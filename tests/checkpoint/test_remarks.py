"""What is odd about a checkpoint and no fault; shards without an index; other formats."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import read_tensors, same_bytes, write_checkpoint
from weightsurgery import Negate, apply, open_vector
from weightsurgery.checkpoint.inspection import inspect
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import verify
from weightsurgery.checkpoint.remarks import remarks
from weightsurgery.checkpoint.weight_files import find_weights
from weightsurgery.errors import CorruptCheckpointError, UnsupportedCheckpointError
from weightsurgery.report.tables import inspection_tables

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(rows: int = 12, layers: int = 2, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    tensors = {EMBEDDING: torch.randn(rows, 4), HEAD: torch.randn(rows, 4)}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.randn(6, 4)
    return tensors | more


def config(**more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "num_hidden_layers": 2, "vocab_size": 12,
        "tie_word_embeddings": False, **more,
    }  # fmt: skip


def tokenizer(count: int, added: int = 0) -> str:
    vocabulary = {f"t{number}": number for number in range(count)}
    extra = [{"id": count + each, "content": f"<{each}>"} for each in range(added)]
    return json.dumps({"model": {"vocab": vocabulary}, "added_tokens": extra})


def notes(root: Path) -> str:
    checkpoint = Checkpoint.open(root)
    text = "\n".join(remarks(checkpoint))
    table: Any = inspection_tables(inspect(checkpoint))[0]
    assert text == "\n".join(text for fact, text in table.rows if fact == "note")
    return text


def test_an_ordinary_checkpoint_has_none(tmp_path: Path) -> None:
    for shards in (1, 3):
        root = write_checkpoint(tmp_path / str(shards), model(), shards, config())
        (root / "tokenizer.json").write_text(tokenizer(10, 2))
        assert notes(root) == ""
    bare = write_checkpoint(tmp_path / "bare", model(), 1)
    assert notes(bare) == ""


def test_ties_that_are_not_as_declared(tmp_path: Path) -> None:
    same = model()
    same[HEAD] = same[EMBEDDING].clone()
    write_checkpoint(tmp_path / "equal", same, 1, config())
    assert "lm_head.weight and model.embed_tokens.weight are equal" in notes(tmp_path / "equal")
    write_checkpoint(tmp_path / "tied", same, 1, config(tie_word_embeddings=True))
    assert notes(tmp_path / "tied") == ""
    write_checkpoint(tmp_path / "apart", model(), 1, config(tie_word_embeddings=True))
    assert "stored apart and differ" in notes(tmp_path / "apart")


def test_rows_that_stand_for_no_token(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "m", model(rows=16), 1, config())
    assert "16 rows, vocab_size of the config is 12" in notes(root)
    root = write_checkpoint(tmp_path / "n", model(), 1, config())
    (root / "tokenizer.json").write_text(tokenizer(9, 1))
    assert "the tokenizer 10 tokens: the last 2 rows stand for none" in notes(root)
    (root / "tokenizer.json").write_text(tokenizer(13))
    assert "13 tokens, model.embed_tokens.weight 12 rows: 1 tokens have none" in notes(root)
    (root / "tokenizer.json").write_text("{")
    assert notes(root) == ""


def test_layers_beyond_the_configs(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "deep", model(layers=3), 1, config())
    assert "(MTP)" in notes(tmp_path / "deep")
    more = model(**{"mtp.fc.weight": torch.ones(4, 8)})
    write_checkpoint(tmp_path / "mtp", more, 1, config())
    assert "1 tensors are of layers beyond the config's, such as mtp.fc" in notes(tmp_path / "mtp")
    write_checkpoint(tmp_path / "few", model(layers=1), 1, config())
    assert "the config has 2 layers, the weights 1" in notes(tmp_path / "few")


def test_towers_that_the_config_does_not_know(tmp_path: Path) -> None:
    vision = model(**{"model.visual.blocks.5.attn.qkv.weight": torch.ones(4, 4)})
    write_checkpoint(tmp_path / "text", vision, 1, config())
    assert "1 tensors are of an image tower" in notes(tmp_path / "text")
    both = config(vision_config={"depth": 6})
    write_checkpoint(tmp_path / "both", vision, 1, both)
    assert notes(tmp_path / "both") == ""
    write_checkpoint(tmp_path / "blind", model(), 1, both)
    assert "the weights have none" in notes(tmp_path / "blind")


def test_sums_and_copies_beside_the_weights(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "m", model(), 2, config())
    path = root / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for metadata in (None, {}, {"total_size": None}):
        path.write_text(json.dumps({**index, "metadata": metadata}))
        assert notes(root) == ""
    path.write_text(json.dumps({**index, "metadata": {"total_size": 7}}))
    assert "says total_size 7" in notes(root)
    write_checkpoint(tmp_path / "ft", {n: t + 0.01 for n, t in model().items()}, 1, config())
    base = Checkpoint.open(root)
    apply(Negate(open_vector(base, [str(tmp_path / "ft")])), base, tmp_path / "out")
    verify(tmp_path / "out")
    assert notes(tmp_path / "out") == ""
    assert json.loads((tmp_path / "out" / path.name).read_text()) == index
    path.write_text(json.dumps(index))
    (root / "consolidated.safetensors").write_bytes(b"")
    (root / "original").mkdir()
    assert "consolidated.safetensors, original/ beside the weights" in notes(root)
    (root / "small.Q4_0.gguf").write_bytes(b"")
    assert "small.Q4_0.gguf, original/ beside the weights: another copy" in notes(root)


def test_they_are_in_the_record_of_an_edit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", model(rows=16), 1, config())
    write_checkpoint(tmp_path / "ft", {n: t + 0.01 for n, t in model(rows=16).items()}, 1, config())
    base = Checkpoint.open(tmp_path / "base")
    done = apply(Negate(open_vector(base, [str(tmp_path / "ft")])), base, tmp_path / "out")
    assert list(remarks(base)) == done.record.inputs["base"]["remarks"]


# --- shards without an index ----------------------------------------------------------------------


def without_index(root: Path, seed: float = 0.0) -> dict[str, torch.Tensor]:
    tensors = {name: tensor + seed for name, tensor in model().items()}
    write_checkpoint(root, tensors, 4, config())
    (root / "model.safetensors.index.json").unlink()
    return tensors


def test_all_shards_are_read_without_their_index_and_the_output_has_one(tmp_path: Path) -> None:
    before = without_index(tmp_path / "base")
    without_index(tmp_path / "ft", 0.01)
    (tmp_path / "base" / "consolidated.safetensors").write_bytes(b"")
    base = Checkpoint.open(tmp_path / "base")
    assert "4 shards and no index" in notes(tmp_path / "base")
    apply(Negate(open_vector(base, [str(tmp_path / "ft")])), base, tmp_path / "out")
    verify(tmp_path / "out")
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.layout.index_name == "model.safetensors.index.json"
    assert notes(tmp_path / "out") == ""
    assert {name: entry.shard for name, entry in checkpoint.entries.items()} == {
        name: entry.shard for name, entry in base.entries.items()
    }
    for name, tensor in before.items():
        torch.testing.assert_close(checkpoint.tensor(name), 2 * tensor - (tensor + 0.01))


@given(st.integers(1, 9), st.data())
def test_missing_shards_are_named(count: int, data: st.DataObject) -> None:
    first = data.draw(st.sampled_from([0, 1]))
    stem = data.draw(st.sampled_from(["model", "pytorch_model", "a-b"]))
    every = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(first, first + count)]
    here = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    if first == 0 and every[0] not in here:
        here.append(every[0])
    root = Path("somewhere")
    if len(here) == count:
        assert find_weights(root, here) == (None, every)
        return
    with pytest.raises(CorruptCheckpointError) as caught:
        find_weights(root, here)
    missing = [name for name in every if name not in here]
    assert all(name in caught.value.what for name in missing[:6])
    assert not any(name in caught.value.what for name in here)


def test_an_index_that_says_nothing_can_be_removed_as_advised(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path, model(), 3, config())
    path = root / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": None, "weight_map": None}))
    with pytest.raises(CorruptCheckpointError, match="no weight_map") as caught:
        Checkpoint.open(root)
    assert "or remove it" in caught.value.remedy
    path.unlink()
    checkpoint = Checkpoint.open(root)
    assert all(same_bytes(checkpoint.tensor(n), t) for n, t in read_tensors(root).items())


def test_weights_that_were_partitioned_are_named_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", model(), 1, config())
    lost = {name: tensor[:0, 0] for name, tensor in model().items()}
    write_checkpoint(tmp_path / "ft", lost, 1, config())
    assert notes(tmp_path / "base") == ""
    (note,) = notes(tmp_path / "ft").splitlines()  # and not that head and embedding are equal
    assert f"4 matrices are empty, such as {HEAD}: the weights were partitioned" in note
    base = Checkpoint.open(tmp_path / "base")
    with pytest.raises(UnsupportedCheckpointError, match=r"partitioned .*ZeRO-3"):
        open_vector(base, [str(tmp_path / "ft")])


# --- GGUF -----------------------------------------------------------------------------------------


def test_gguf_is_named_with_the_command_that_converts_it(tmp_path: Path) -> None:
    root = tmp_path / "it's here"
    root.mkdir()
    (root / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    for name in (root, root / "model-Q4_K_M.gguf"):
        with pytest.raises(UnsupportedCheckpointError, match=r"GGUF \(model-Q4_K_M") as caught:
            Checkpoint.open(name)
    words = shlex.split(caught.value.remedy.partition("python ")[2])
    assert words[0] == "-c"
    compile(words[1], "remedy", "exec")
    assert words[1].count(repr(str(root))) == 1
