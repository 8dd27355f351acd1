import errno
import json
import math
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open

from weightsurgery.checkpoint.layout import BITS
from weightsurgery.checkpoint.quantised import quantisation
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)

from .handmade import TWO, content, directory, run_python, says, sharded

READABLE = [d for d in BITS if d not in {"F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"}]
SHAPES = [(), (7,), (5, 3), (2, 3, 4), (0, 4), (4, 0)]


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def every_dtype(tmp_path):
    """Each readable dtype in each shape; an odd byte first, so that nothing is aligned."""
    tensors = {"odd": ("U8", (3,))}
    tensors |= {f"{d}.{i}": (d, shape) for d in READABLE for i, shape in enumerate(SHAPES)}
    return directory(tmp_path, {"model.safetensors": tensors}), tensors


def test_whole_tensors_agree_with_safetensors(every_dtype):
    root, tensors = every_dtype
    with Checkpoint.open(root) as checkpoint, safe_open(root / "model.safetensors", "pt") as theirs:
        assert set(checkpoint.entries) == set(tensors)
        for name, (dtype, shape) in tensors.items():
            mine = checkpoint.tensor(name)
            assert mine.dtype == torch_dtype(dtype)
            assert tuple(mine.shape) == shape
            assert raw(mine) == content(name, dtype, shape) == bytes(checkpoint.read_bytes(name))
            other = theirs.get_tensor(name)
            assert (mine.dtype, mine.shape, raw(mine)) == (other.dtype, other.shape, raw(other))


def test_row_blocks_agree_with_safetensors(every_dtype):
    root, tensors = every_dtype
    with Checkpoint.open(root) as checkpoint, safe_open(root / "model.safetensors", "pt") as theirs:
        for name, (dtype, shape) in tensors.items():
            if len(shape) < 2:
                continue
            flat = theirs.get_tensor(name).reshape(math.prod(shape[:-1]), shape[-1])
            for start in range(len(flat) + 1):
                for stop in range(start, len(flat) + 1):
                    mine = checkpoint.rows(name, start, stop)
                    assert tuple(mine.shape) == (stop - start, shape[-1])
                    assert raw(mine) == raw(flat[start:stop]), (name, dtype)
        assert checkpoint.rows("F32.0", 0, 1).shape == (1,)


def test_byte_ranges(every_dtype):
    root, tensors = every_dtype
    with Checkpoint.open(root) as checkpoint:
        whole = content("F32.3", *tensors["F32.3"])
        assert bytes(checkpoint.read_bytes("F32.3", 5, 90)) == whole[5:90]
        assert bytes(checkpoint.read_bytes("F32.3", 5)) == whole[5:]
        assert bytes(checkpoint.read_bytes("F32.3", 96)) == b""
        for start, stop in [(-1, 4), (0, 97), (90, 97), (97, 97)]:
            with pytest.raises(ValueError, match=r"F32\.3"):
                checkpoint.read_bytes("F32.3", start, stop)
        rows = checkpoint.entry("F32.3").rows
        for start, stop in [(-1, 1), (0, rows + 1), (2, 1)]:
            with pytest.raises(ValueError, match=r"F32\.3"):
                checkpoint.rows("F32.3", start, stop)


def test_codes_are_not_numbers(tmp_path):
    root = directory(tmp_path, {"model.safetensors": {"a": ("F4", (2, 4)), "b": ("F32", (1,))}})
    with Checkpoint.open(root) as checkpoint:
        assert checkpoint.tensor("b").numel() == 1
        assert bytes(checkpoint.read_bytes("a")) == content("a", "F4", (2, 4))
        with pytest.raises(UnsupportedCheckpointError) as error:
            checkpoint.tensor("a")
        says(error, "F4")


def test_what_is_read_is_memory_of_its_own(tmp_path):
    root = directory(tmp_path, {"model.safetensors": TWO})
    with Checkpoint.open(root) as checkpoint:
        first = checkpoint.tensor("a.weight")
        first.zero_()
        assert raw(checkpoint.tensor("a.weight")) == content("a.weight", *TWO["a.weight"])
        assert not first.any()


def test_an_unknown_tensor(tmp_path):
    with Checkpoint.open(directory(tmp_path, {"model.safetensors": TWO})) as checkpoint:
        assert checkpoint.entry("a.weight").shape == (2, 3)
        for read in (checkpoint.entry, checkpoint.tensor, checkpoint.read_bytes):
            with pytest.raises(CheckpointError) as error:
                read("c.weight")
            says(error, str(tmp_path), "'c.weight'")


def test_many_threads_read_at_once(tmp_path):
    tensors = {f"t{i}": ("BF16", (50 + i, 40)) for i in range(12)}
    names = list(tensors)
    files = {f"{i}.safetensors": dict(list(tensors.items())[i::3]) for i in range(3)}
    weight_map = {name: f"{i % 3}.safetensors" for i, name in enumerate(names)}
    directory(tmp_path, files | {"model.safetensors.index.json": {"weight_map": weight_map}})
    wanted = {name: content(name, *facts) for name, facts in tensors.items()}

    def read(seed):
        rng = random.Random(seed)
        for _ in range(40):
            name = rng.choice(names)
            stop = rng.randint(0, tensors[name][1][0])
            start = rng.randint(0, stop)
            assert raw(checkpoint.rows(name, start, stop)) == wanted[name][start * 80 : stop * 80]
        return seed

    with Checkpoint.open(tmp_path) as checkpoint, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(16))) == list(range(16))
        handles = [checkpoint.handle(shard) for shard in checkpoint.shards]
        assert len(set(handles)) == 3
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_a_file_truncated_after_it_was_opened(tmp_path):
    root = directory(tmp_path, {"model.safetensors": TWO})
    with Checkpoint.open(root) as checkpoint:
        assert checkpoint.tensor("b.weight").numel() == 4
        path = root / "model.safetensors"
        os.truncate(path, path.stat().st_size - 1)
        assert checkpoint.tensor("a.weight").numel() == 6
        with pytest.raises(CorruptCheckpointError) as error:
            checkpoint.tensor("b.weight")
        says(error, str(path), "'b.weight'")


def test_a_shard_removed_after_opening(tmp_path):
    root = sharded(tmp_path)
    with Checkpoint.open(root) as checkpoint:
        assert checkpoint.tensor("a.weight").numel() == 6
        (root / "two.safetensors").unlink()
        (root / "one.safetensors").unlink()
        assert checkpoint.tensor("a.weight").numel() == 6  # an open file stays readable
        with pytest.raises(CheckpointError) as error:
            checkpoint.tensor("b.weight")
        says(error, str(root / "two.safetensors"), "cannot be opened")


def test_a_failing_disk(tmp_path, monkeypatch):
    root = directory(tmp_path, {"model.safetensors": TWO})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with Checkpoint.open(root) as checkpoint:
        assert checkpoint.tensor("a.weight").numel() == 6
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError) as error:
            checkpoint.tensor("a.weight")
        says(error, str(root / "model.safetensors"), "'a.weight'", "Input/output error")


def test_short_reads_are_continued(tmp_path, monkeypatch):
    root = directory(tmp_path, {"model.safetensors": TWO})
    real, calls = os.preadv, []

    def short(handle, buffers, offset):
        calls.append(offset)
        return real(handle, [buffers[0][:5]], offset)

    monkeypatch.setattr(os, "preadv", short)
    with Checkpoint.open(root) as checkpoint:
        assert raw(checkpoint.tensor("a.weight")) == content("a.weight", *TWO["a.weight"])
    assert len(calls) == 5


MEMORY = """
import sys, torch
from weightsurgery.checkpoint.reader import Checkpoint
def resident():
    facts = dict(line.split(":", 1) for line in open("/proc/self/status"))
    mapped = sum(int(l.split()[1]) for l in open("/proc/self/smaps") if l.startswith("Rss:"))
    return int(facts["RssAnon"].split()[0]) / 1024, mapped / 1024
with Checkpoint.open(sys.argv[1]) as c:
    c.rows("small", 0, 10)
    before = resident()
    kept = [c.tensor("small")]
    for start in range(0, 3000, 100):
        total = c.rows("large", start, start + 100).sum()
    after = resident()
    print(after[0] - before[0], after[1] - before[1])
    print(any("model.safetensors" in line for line in open("/proc/self/maps")))
    kept.append(c.tensor("large"))
    print(resident()[0] - before[0])
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    from weightsurgery.checkpoint.layout import encode_header

    header = encode_header([("large", "F32", (3000, 25_000)), ("small", "F32", (1000, 100))], {})
    path = tmp_path / "model.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + 300_400_000)  # sparse: nothing is written
    lines = run_python(MEMORY, tmp_path, OMP_NUM_THREADS="1").split("\n")
    anonymous, mapped = map(float, lines[0].split())
    assert anonymous < 100
    assert mapped < 100
    assert lines[1] == "False"
    assert float(lines[2]) > 250  # the measure sees what is held


# The config


def test_config(tmp_path):
    root = directory(tmp_path, {"model.safetensors": TWO})
    assert Checkpoint.open(root).config == {}
    nested = {
        "tie_word_embeddings": True,
        "a": 1,
        "text_config": {"a": 2, "tie_word_embeddings": False},
    }
    directory(root, {"config.json": nested})
    checkpoint = Checkpoint.open(root)
    assert checkpoint.config == nested
    assert checkpoint.text_config["a"] == 2
    assert checkpoint.text_config["tie_word_embeddings"] is False


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 99999, b"\xff"])
def test_a_damaged_config(tmp_path, text):
    checkpoint = Checkpoint.open(
        directory(tmp_path, {"model.safetensors": TWO, "config.json": text})
    )
    assert checkpoint.entries
    with pytest.raises(CorruptCheckpointError) as error:
        _ = checkpoint.config
    says(error, str(tmp_path / "config.json"))


# Quantised checkpoints

MLP = "model.layers.0.mlp.down_proj"
QUANTISED = {
    "GPTQ": {
        f"{MLP}.qweight": ("I32", (2, 8)),
        f"{MLP}.qzeros": ("I32", (1, 1)),
        f"{MLP}.scales": ("F16", (1, 8)),
        f"{MLP}.g_idx": ("I32", (16,)),
    },
    "AWQ": {
        f"{MLP}.qweight": ("I32", (8, 1)),
        f"{MLP}.qzeros": ("I32", (1, 1)),
        f"{MLP}.scales": ("F16", (1, 8)),
    },
    "bitsandbytes int8": {f"{MLP}.weight": ("I8", (4, 4)), f"{MLP}.SCB": ("F32", (4,))},
    "bitsandbytes": {
        f"{MLP}.weight": ("U8", (8, 1)),
        f"{MLP}.weight.absmax": ("U8", (1,)),
        f"{MLP}.weight.quant_map": ("F32", (16,)),
        f"{MLP}.weight.quant_state.bitsandbytes__nf4": ("U8", (9,)),
    },
    "bitsandbytes 4-bit": {f"{MLP}.weight.quant_state.bitsandbytes__fp4": ("U8", (9,))},
    "fp8 with block scales": {
        f"{MLP}.weight": ("F8_E4M3", (4, 4)),
        f"{MLP}.weight_scale_inv": ("F32", (1, 1)),
    },
    "fp8 or int8 with scales": {
        f"{MLP}.weight": ("F8_E4M3", (4, 4)),
        f"{MLP}.weight_scale": ("F32", (4, 1)),
        f"{MLP}.input_scale": ("F32", ()),
    },
    "fp8 without scales": {
        f"{MLP}.weight": ("F8_E4M3", (4, 4)),
        f"{MLP}.bias": ("BF16", (4,)),
        f"{MLP}.input_scale": ("F32", ()),
    },
    "fp8 with scales": {
        f"{MLP}.weight": ("F8_E5M2", (4, 4)),
        f"{MLP}.absolutely_anything": ("F32", (4, 1)),
    },
    "fp8 with scales (tensor 'model.layers.0.mlp.experts.gate_up_proj_scale_inv')": {
        "model.layers.0.mlp.experts.gate_up_proj": ("F8_E4M3", (2, 4, 4)),
        "model.layers.0.mlp.experts.gate_up_proj_scale_inv": ("F32", (2, 1, 1)),
    },
    "fp8 with scales (tensor 'model.layers.0.mlp.scale')": {
        "model.layers.0.mlp.weight": ("F8_E4M3", (4, 4)),
        "model.layers.0.mlp.scale": ("F32", (1, 1)),
    },
    "int8 with scales": {f"{MLP}.weight": ("I8", (4, 4)), f"{MLP}.scale": ("F16", (4,))},
    "fp8 or int8": {f"{MLP}.weight": ("I8", (4, 4)), f"{MLP}.weight_scale": ("BF16", (4, 1))},
    "compressed-tensors": {
        f"{MLP}.weight_packed": ("I32", (4, 1)),
        f"{MLP}.weight_scale": ("BF16", (4, 1)),
        f"{MLP}.weight_shape": ("I64", (2,)),
    },
    "mxfp4": {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": ("U8", (1, 2, 1, 16)),
        "model.layers.0.mlp.experts.gate_up_proj_scales": ("U8", (1, 2, 1)),
    },
    "F8_E8M0 codes": {f"{MLP}.scale": ("F8_E8M0", (4,))},
    "F4 codes": {f"{MLP}.weight": ("F4", (4, 4))},
}


@pytest.mark.parametrize("scheme", QUANTISED)
def test_quantised_checkpoints_are_recognised(tmp_path, scheme):
    tensors = {"model.norm.weight": ("BF16", (4,)), **QUANTISED[scheme]}
    found = quantisation(Checkpoint.open(directory(tmp_path, {"model.safetensors": tensors})))
    assert found is not None
    assert scheme in found
    assert "tensor 'model.layers.0.mlp" in found


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        {"compression_config": {"quant_method": "gptq"}},
    ],
)
def test_a_declared_quantisation_is_recognised(tmp_path, config):
    root = directory(tmp_path, {"model.safetensors": TWO, "config.json": config})
    assert quantisation(Checkpoint.open(root)) == "gptq (config.json)"


PLAIN = {
    "an ordinary model": {"model.norm.weight": ("BF16", (4,)), f"{MLP}.weight": ("F32", (4, 4))},
    "a learned scale": {f"{MLP}.weight": ("F32", (4, 4)), f"{MLP}.weight_scale": ("F32", (4,))},
    "residual blocks": {"encoder.res_blocks": ("F32", (4, 4)), "encoder.res_scales": ("F32", (4,))},
    "blocks alone": {"encoder.res_blocks": ("U8", (4, 4))},
    "a scale without a weight": {"attn.weight_scale": ("F32", (1,)), "logit_scale": ("F32", ())},
    "names of other meaning": {
        "a.qweight": ("F32", (2, 2)),
        "b.SCB": ("F32", (2,)),
        "c.absmax": ("F32", ()),
    },
    "fp8 vectors": {f"{MLP}.weight": ("F8_E4M3", (4,))},
    "integer weights": {f"{MLP}.weight": ("I8", (4, 4)), f"{MLP}.bias": ("F32", (4,))},
    "integer buffers": {"position_ids": ("I64", (8,)), "mask": ("BOOL", (4, 4)), "q": ("U8", (3,))},
}


@pytest.mark.parametrize("case", PLAIN)
@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_misleading_names_are_not_quantised(tmp_path, case, config):
    files = {"model.safetensors": PLAIN[case], "config.json": config}
    assert quantisation(Checkpoint.open(directory(tmp_path, files))) is None
    declared = json.dumps({"quantization_config": {"bits": 4}})
    directory(tmp_path, {"config.json": declared})
    assert quantisation(Checkpoint.open(tmp_path)) == "unknown scheme (config.json)"
