"""Float8 read as numbers: code times scale, by hand and by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from tests.conftest import read_tensors, same_bytes, write_checkpoint
from weightsurgery import Add, Negate, Storage, apply, open_vector
from weightsurgery.checkpoint.dequantised import Dequantised, dequantised
from weightsurgery.checkpoint.quantised import quantisation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import verify
from weightsurgery.errors import UnsupportedCheckpointError
from weightsurgery.surgery.compare import diff

W = "model.layers.0.mlp.up_proj.weight"


def codes(*shape: int) -> torch.Tensor:
    return torch.randn(shape).mul_(40).to(torch.float8_e4m3fn)


def scaled(values: torch.Tensor, scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """By hand: each number times the scale of its block."""
    wide = scale.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return values.float() * wide[..., : values.shape[-2], : values.shape[-1]]


SCALES = {
    "one number": ("weight_scale", (), (24, 20)),
    "one in a matrix": ("scale", (1, 1), (24, 20)),
    "comfy": ("scale_weight", (1,), (24, 20)),
    "rows": ("weight_scale", (24, 1), (1, 20)),
    "rows, flat": ("weight_scale", (24,), (1, 20)),
    "blocks": ("weight_scale_inv", (3, 4), (8, 5)),
}


@pytest.mark.parametrize("kind", SCALES)
def test_codes_times_scales(kind: str, tmp_path: Path) -> None:
    leaf, shape, block = SCALES[kind]
    stored = {
        W: codes(24, 20),
        W.replace("weight", leaf): torch.rand(shape) / 100 + 0.001,
        W.replace("weight", "input_scale"): torch.tensor(0.5),
        "model.norm.weight": torch.ones(20, dtype=torch.bfloat16),
    }
    write_checkpoint(tmp_path / "m", stored, shards=2, config={"torch_dtype": "float32"})
    plain = Checkpoint.open(tmp_path / "m")
    assert quantisation(plain) is not None
    found = dequantised(plain)
    assert list(found.entries) == [n for n in plain.entries if n in (W, "model.norm.weight")]
    scale = stored[W.replace("weight", leaf)]
    grid = scale.reshape(scale.shape if scale.ndim == 2 else (-1, 1))
    wanted = scaled(stored[W], grid, *block)
    assert torch.equal(found.tensor(W), wanted)
    for start, stop in ((0, 24), (5, 6), (7, 19)):
        assert torch.equal(found.rows(W, start, stop), wanted[start:stop])
    # By bytes, from the middle of one row to that of another.
    raw = bytes(wanted.contiguous().view(-1).view(torch.uint8).numpy())
    assert bytes(found.read_bytes(W, 33, 777)) == raw[33:777]


@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2)
)
def test_blocks_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, a: int, b: int, m: int, n: int, stack: int
) -> None:
    lead = (stack,) if stack else ()
    values, scale = codes(*lead, a * m, b * n), torch.rand(*lead, a, b) + 0.01
    root = tmp_path_factory.mktemp("blocks")
    name, key = "x.experts.up", "x.experts.up_scale_inv"
    write_checkpoint(root, {name: values, key: scale}, config={"dtype": "float32"})
    found = dequantised(Checkpoint.open(root)).tensor(name)
    wanted = Fp8Dequantize(None)._dequantize_one(values, scale, torch.float32)
    assert torch.equal(found, wanted.reshape(found.shape))


def test_a_last_block_that_is_cut_off(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 8]}}
    stored = {W: codes(24, 20), f"{W}_scale_inv": torch.rand(2, 3)}
    write_checkpoint(tmp_path, stored, config=config)
    found = dequantised(Checkpoint.open(tmp_path))
    wanted = scaled(stored[W], stored[f"{W}_scale_inv"], 16, 8).to(torch.bfloat16)
    assert torch.equal(found.tensor(W), wanted)
    assert "quantization_config" not in found.config


def test_scales_that_are_exponents(tmp_path: Path) -> None:
    exponents = torch.randint(110, 130, (3, 4), dtype=torch.uint8)
    write_checkpoint(tmp_path, {W: codes(24, 20), f"{W}_scale_inv": exponents})
    found = dequantised(Checkpoint.open(tmp_path)).tensor(W)
    wanted = scaled(read_tensors(tmp_path)[W], 2.0 ** (exponents.float() - 127), 8, 5)
    assert torch.equal(found, wanted.to(torch.bfloat16))


def model(root: Path, seed: int, fp8: bool, scales: bool = True) -> dict[str, torch.Tensor]:
    """A checkpoint of float8 or of the numbers that it stands for; these numbers."""
    torch.manual_seed(seed)
    numbers = {"model.norm.weight": torch.ones(20, dtype=torch.bfloat16)}
    stored = dict(numbers)
    for layer in range(2):
        name = W.replace(".0.", f".{layer}.")
        stored[name], scale = codes(24, 20), torch.rand(3, 4) / 100
        factor = scale if scales else torch.ones(3, 4)
        numbers[name] = scaled(stored[name], factor, 8, 5).to(torch.bfloat16)
        if scales:
            stored[f"{name}_scale_inv"] = scale
    config = {"torch_dtype": "bfloat16", "model_type": "llama"}
    if fp8 and scales:
        config["quantization_config"] = {"quant_method": "fp8"}  # type: ignore[assignment]
    write_checkpoint(root, stored if fp8 else numbers, shards=2, config=config)
    return numbers


@pytest.mark.parametrize("which", ["base", "vector", "both"])
@pytest.mark.parametrize("scales", [True, False], ids=["scales", "no scales"])
def test_an_edit_of_codes_is_that_of_their_numbers(
    which: str, scales: bool, tmp_path: Path
) -> None:
    """Byte for byte, and the output is an ordinary checkpoint."""
    for place, fp8 in (("codes", True), ("numbers", False)):
        for seed, role in ((1, "base"), (2, "vector")):
            model(tmp_path / place / role, seed, fp8 and which in (role, "both"), scales)
    for place in ("codes", "numbers"):
        base = dequantised(Checkpoint.open(tmp_path / place / "base"))
        vector = open_vector(base, [str(tmp_path / place / "vector")])
        done = apply(Negate(vector, 0.5), base, tmp_path / place / "out", allow_unrelated=True)
        if place == "codes":
            assert any("float8 matrices are read as BF16" in note for note in done.notices)
    found, wanted = (read_tensors(tmp_path / p / "out") for p in ("codes", "numbers"))
    assert set(found) == set(wanted)
    assert all(same_bytes(found[name], wanted[name]) for name in wanted)
    out = tmp_path / "codes" / "out"
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    again = Checkpoint.open(out)
    assert quantisation(again) is None
    verify(out)


def test_without_being_asked_codes_are_refused_and_the_remedy_works(tmp_path: Path) -> None:
    model(tmp_path / "base", 1, True, scales=False)
    model(tmp_path / "vector", 2, False)
    base = Checkpoint.open(tmp_path / "base")
    with pytest.raises(UnsupportedCheckpointError, match="fp8 without scales") as caught:
        open_vector(base, [str(tmp_path / "vector")])
    assert "--dequantize" in caught.value.remedy
    base = dequantised(base)
    vector = open_vector(base, [str(tmp_path / "vector")])
    diff(base, vector, save_to=tmp_path / "saved")
    assert len(Checkpoint.open(tmp_path / "saved").entries) >= 2
    apply(
        Add(vector), base, tmp_path / "out", storage=Storage(dtype="float32"), allow_unrelated=True
    )
    assert {entry.dtype for entry in Checkpoint.open(tmp_path / "out").entries.values()} == {"F32"}


REFUSED = {
    "a scale that is lost": {W: codes(4, 4), f"{W}_scale_inv": torch.ones(1, 1),
                             W.replace(".0.", ".1."): codes(4, 4)},
    "scales of another shape": {W: codes(4, 6), f"{W}_scale_inv": torch.ones(3, 4)},
    "codes of another kind": {W: codes(4, 4), "x.weight": torch.ones(4, 4, dtype=torch.int8)},
    "another scheme": {"x.qweight": torch.ones(4, 4, dtype=torch.int32)},
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused(kind: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, REFUSED[kind])
    with pytest.raises(UnsupportedCheckpointError) as caught:
        dequantised(Checkpoint.open(tmp_path))
    assert caught.value.remedy


def test_numbers_stay_as_they_are(tmp_path: Path) -> None:
    model(tmp_path, 1, False)
    plain = Checkpoint.open(tmp_path)
    assert dequantised(plain) is plain
    assert not isinstance(plain, Dequantised)
