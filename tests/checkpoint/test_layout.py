import os
import re
import subprocess
import sys

import pytest
import torch

from weightsurgery.checkpoint.layout import (
    INDEX_NAME,
    read_layout,
)
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import (
    CheckpointError,
    CorruptCheckpointError,
    SourceError,
    UnsupportedCheckpointError,
)

from .handmade import TWO, content, directory, frame, index, says, sharded


def test_one_file_and_shards_are_read(tmp_path):
    single = read_layout(directory(tmp_path / "one", {"model.safetensors": TWO}))
    assert (single.index_name, list(single.shards)) == (None, ["model.safetensors"])
    assert (single.nbytes, single.parameters) == (32, 10)
    layout = read_layout(sharded(tmp_path / "two"))
    assert layout.index_name == INDEX_NAME
    assert {e.name: e.shard for e in layout.entries.values()} == {
        "a.weight": "one.safetensors",
        "b.weight": "two.safetensors",
    }
    assert layout.nbytes == 32


def test_other_names_are_found(tmp_path):
    assert read_layout(directory(tmp_path / "a", {"weights.safetensors": TWO})).index_name is None
    other = directory(
        tmp_path / "b",
        {
            "x.safetensors": TWO,
            "y.safetensors": {"alien": ("F32", (1,))},
            "consolidated.safetensors.index.json": index(dict.fromkeys(TWO, "x.safetensors")),
        },
    )
    layout = read_layout(other)
    assert layout.index_name == "consolidated.safetensors.index.json"
    assert set(layout.entries) == set(TWO)  # what the index does not name is another model's


def test_transformers_order_of_preference(tmp_path):
    """``model.safetensors`` goes before an index of another name; beside its own index, refused."""
    files = {"model.safetensors": TWO, "other.safetensors": {"o": ("F32", (1,))}}
    other = {"consolidated.safetensors.index.json": index({"o": "other.safetensors"})}
    assert set(read_layout(directory(tmp_path / "a", files | other)).entries) == set(TWO)
    mixed = sharded(tmp_path / "b")
    assert set(read_layout(mixed).entries) == set(TWO)
    directory(mixed, {"model.safetensors": TWO})
    with pytest.raises(SourceError) as error:
        read_layout(mixed)
    says(error, str(mixed), "model.safetensors", INDEX_NAME)


def test_a_shard_in_a_subdirectory(tmp_path):
    root = sharded(tmp_path, "part/one.safetensors", "./two.safetensors")
    layout = read_layout(root)
    assert list(layout.shards) == ["part/one.safetensors", "two.safetensors"]
    with Checkpoint.open(root) as checkpoint:
        assert checkpoint.read_bytes("a.weight") == content("a.weight", *TWO["a.weight"])
        assert checkpoint.read_bytes("b.weight") == content("b.weight", *TWO["b.weight"])


def test_links_into_a_hub_cache_are_followed(tmp_path):
    blobs = tmp_path / "blobs"
    snapshot = tmp_path / "snapshots" / ("0" * 40)
    sharded(blobs)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(["one.safetensors", "two.safetensors", INDEX_NAME]):
        (blobs / name).rename(blobs / (f"{number}" * 64))
        (snapshot / name).symlink_to(f"../../blobs/{f'{number}' * 64}")
    layout = read_layout(snapshot)
    assert set(layout.entries) == set(TWO)
    (blobs / ("1" * 64)).unlink()
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(snapshot)
    says(error, str(snapshot), "two.safetensors is missing (1 of 2)")


def wrong_index(root, weight_map):
    return directory(root, {"one.safetensors": TWO, INDEX_NAME: index(weight_map)})


@pytest.mark.parametrize(
    "shard",
    [
        *("../one.safetensors", "x/../one.safetensors", "/etc/one.safetensors"),
        *("..\\one.safetensors", "one\0.safetensors", "", ".", 7, None, ["one.safetensors"]),
    ],
)
def test_an_index_that_leaves_its_directory_is_refused(tmp_path, shard):
    good = wrong_index(tmp_path / "good", dict.fromkeys(TWO, "one.safetensors"))
    assert len(read_layout(good).entries) == 2
    directory(tmp_path, {"one.safetensors": TWO})
    root = wrong_index(tmp_path / "bad", {"a.weight": "one.safetensors", "b.weight": shard})
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(root)
    says(error, INDEX_NAME, "'b.weight'", repr(shard), "outside the checkpoint")


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (
            {"a.weight": "one.safetensors", "b.weight": "two.safetensors"},
            "shard two.safetensors is missing",
        ),
        ({"a.weight": "one.safetensors", "b.weight": "x" * 300 + ".safetensors"}, "is missing"),
        ({"a.weight": "one.safetensors"}, "'b.weight' is missing from"),
        (dict.fromkeys([*TWO, "c"], "one.safetensors"), "'c' is not in one.safetensors"),
        ({"a.weight": "one.safetensors", "b.weight": INDEX_NAME}, "no .safetensors file"),
        ({}, "no weight_map"),
    ],
)
def test_index_and_shards_must_agree(tmp_path, weight_map, words):
    root = wrong_index(tmp_path, dict.fromkeys(TWO, "one.safetensors"))
    assert len(read_layout(root).entries) == 2
    wrong_index(tmp_path, weight_map)
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(root)
    says(error, str(root), words)


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path):
    root = sharded(tmp_path)
    assert len(read_layout(root).entries) == 2
    swapped = {"a.weight": "two.safetensors", "b.weight": "one.safetensors"}
    directory(root, {INDEX_NAME: index(swapped)})
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(root)
    says(error, "'a.weight' is not in two.safetensors")


def test_a_tensor_in_two_shards(tmp_path):
    root = sharded(tmp_path)
    assert len(read_layout(root).entries) == 2
    directory(root, {"two.safetensors": TWO})
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(root)
    says(error, str(root), "'a.weight'", "one.safetensors", "two.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"weight_map": 3}',
        b'{"weight_map": {}, "weight_map": {}}',
        b"[" * 99999,
    ],
)
def test_a_damaged_index(tmp_path, text):
    root = sharded(tmp_path)
    assert len(read_layout(root).entries) == 2
    (root / INDEX_NAME).write_bytes(text)
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(root)
    says(error, str(root / INDEX_NAME))


def test_an_index_that_is_a_directory(tmp_path):
    (tmp_path / INDEX_NAME).mkdir()
    with pytest.raises(CheckpointError) as error:
        read_layout(tmp_path)
    says(error, INDEX_NAME, "cannot be read")


def test_a_shard_that_may_not_be_read(tmp_path, monkeypatch):
    root = sharded(tmp_path)
    assert len(read_layout(root).entries) == 2

    def refuse(self, mode="r", *rest):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: open(self, "rb").read())  # noqa: SIM115
    with pytest.raises(CheckpointError) as error:
        read_layout(root)
    says(error, str(root / "one.safetensors"), "Permission denied")


def test_several_indexes(tmp_path):
    root = directory(
        tmp_path,
        {
            "x.safetensors": TWO,
            "a.safetensors.index.json": index(dict.fromkeys(TWO, "x.safetensors")),
            "b.safetensors.index.json": index(dict.fromkeys(TWO, "x.safetensors")),
        },
    )
    with pytest.raises(SourceError) as error:
        read_layout(root)
    says(error, str(root), "a.safetensors.index.json, b.safetensors.index.json")
    (root / "b.safetensors.index.json").rename(root / INDEX_NAME)
    assert read_layout(root).index_name == INDEX_NAME


def test_several_files_without_an_index(tmp_path):
    root = sharded(tmp_path)
    assert len(read_layout(root).entries) == 2
    (root / INDEX_NAME).unlink()
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(root)
    says(error, str(root), "2 weight files and no index")
    assert INDEX_NAME in error.value.remedy


def test_no_weights_at_all(tmp_path):
    with pytest.raises(SourceError) as error:
        read_layout(tmp_path)
    says(error, str(tmp_path), "no .safetensors file")
    directory(tmp_path, {"optimizer.pt": b"x", "training_args.bin": b"x", "rng_state_0.pth": b"x"})
    with pytest.raises(SourceError):
        read_layout(tmp_path)
    directory(tmp_path, {"model.safetensors": frame({})})
    with pytest.raises(CorruptCheckpointError) as corrupt:
        read_layout(tmp_path)
    says(corrupt, str(tmp_path), "no tensor")


def test_a_git_lfs_pointer(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4\n"
    with pytest.raises(CorruptCheckpointError) as error:
        read_layout(directory(tmp_path, {"model.safetensors": pointer}))
    says(error, str(tmp_path / "model.safetensors"), "git-lfs pointer")
    assert "git lfs pull" in error.value.remedy


@pytest.mark.parametrize("shards", [1, 2])
def test_pickles_are_refused_with_a_command_that_converts_them(tmp_path, shards):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    root = tmp_path / 'it\'s a "model" [1]'
    root.mkdir()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    model.config.save_pretrained(root)
    states = list(model.state_dict().items())  # with the tied head, as old checkpoints have it
    for number in range(shards):
        name = (
            "pytorch_model.bin" if shards == 1 else f"pytorch_model-0000{number + 1}-of-00002.bin"
        )
        torch.save(dict(states[number::shards]), root / name)
    with pytest.raises(UnsupportedCheckpointError) as error:
        read_layout(root)
    says(error, str(root), "pytorch_model")
    command = re.search(r"python -c .*$", error.value.remedy).group()
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    subprocess.run(
        ["bash", "-c", command], check=True, env={**os.environ, "PATH": path}, cwd=tmp_path
    )
    with Checkpoint.open(root) as checkpoint:
        assert set(checkpoint.entries) == set(model.state_dict())
        for name, tensor in states:
            assert torch.equal(checkpoint.tensor(name), tensor)
    loaded = AutoModelForCausalLM.from_pretrained(root).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in states)


def test_other_pickles_get_no_command_that_would_garble_them(tmp_path):
    root = directory(tmp_path, {"consolidated.00.pth": b"x", "consolidated.01.pth": b"x"})
    with pytest.raises(UnsupportedCheckpointError) as error:
        read_layout(root)
    says(error, str(root), "consolidated.00.pth")
    assert "python" not in error.value.remedy


def test_pickles_in_their_maker_s_folder_are_named(tmp_path):
    root = directory(tmp_path, {"config.json": b"{}"})
    with pytest.raises(SourceError, match=r"no \.safetensors file"):
        read_layout(root)
    (root / "original").mkdir()
    (root / "original/consolidated.00.pth").write_bytes(b"x")
    with pytest.raises(UnsupportedCheckpointError) as error:
        read_layout(root)
    says(error, "original/consolidated.00.pth", "no safetensors")
