"""Numbers at the edges: what overflows, vanishes, is no number, or has a sign and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import read_tensors, same_bytes, snapshot, write_checkpoint
from weightsurgery import Add, Checkpoint, Rank, apply, open_vector, verify
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.errors import NonFiniteError, VerificationError

NAME = "model.layers.0.mlp.up_proj.weight"


def edited(
    place: Path, base: torch.Tensor, tuned: torch.Tensor, scale: float, workers: int = 1
) -> Path:
    """``base + scale (tuned − base)``, written."""
    write_checkpoint(place / "base", {NAME: base, "other": torch.ones(3)})
    write_checkpoint(place / "tuned", {NAME: tuned, "other": torch.ones(3)})
    out = place / f"out{workers}"
    with Checkpoint.open(place / "base") as opened:
        vector = open_vector(opened, [str(place / "tuned")])
        apply(Add(vector, scale), opened, out, workers=workers, overwrite=True,
              allow_unrelated=True)  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_grows_beyond_its_dtype_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    base, tuned = torch.full((4, 4), most / 2, dtype=dtype), torch.full((4, 4), most, dtype=dtype)
    out = edited(tmp_path, base, tuned, 0.5)  # to three quarters: held
    assert torch.isfinite(read_tensors(out)[NAME]).all()
    before = snapshot(out)
    with pytest.raises(NonFiniteError, match=NAME.replace(".", r"\.")):
        edited(tmp_path, base, tuned, 2.0)
    assert snapshot(out) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["base", "tuned"])
def test_what_is_no_number_is_named_with_its_tensor(tmp_path: Path, bad: float, where: str) -> None:
    given = {"base": torch.ones(4, 4), "tuned": torch.full((4, 4), 1.5)}
    given[where][2, 3] = bad
    with pytest.raises(NonFiniteError, match=NAME.replace(".", r"\.")):
        edited(tmp_path, given["base"], given["tuned"], 1.0)
    assert not (tmp_path / "out1").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_subnormals_and_signs_of_zero(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 4
    base = torch.tensor([[tiny, -tiny, 0.0, -0.0], [1.0, -1.0, tiny, 0.0]], dtype=dtype)
    tuned = base.clone()
    tuned[1, 0] = 2.0
    found = read_tensors(edited(tmp_path, base, tuned, 1.0))[NAME]
    assert torch.equal(found, tuned)
    assert same_bytes(found[0, :3], base[0, :3])  # not flushed to zero
    assert read_tensors(edited(tmp_path, base, tuned, 1.0))["other"].eq(1).all()


def test_bytes_depend_on_no_number_of_threads(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(700, 513, generator=draw).bfloat16()
    tuned = (base.float() + 0.01 * torch.randn(700, 513, generator=draw)).bfloat16()
    outs = [edited(tmp_path, base, tuned, 0.7, workers) for workers in (1, 2, 5)]
    states = [snapshot(out) for out in outs]
    weights = [s["model.safetensors"] for s in states]
    assert weights[0] == weights[1] == weights[2]
    again = edited(tmp_path, base, tuned, 0.7, 1)
    assert snapshot(again) == states[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 3), (600, 5), (5, 600), (200, 200)])
def test_matrices_of_no_rank_and_of_one(shape: tuple[int, int]) -> None:
    zero = truncated_svd(torch.zeros(shape), Rank(3))
    assert not zero.factors.matrix().any()
    assert torch.isfinite(zero.factors.S).all()
    draw = torch.Generator().manual_seed(1)
    for size in (1e-30, 1.0, 1e18):  # squares of the smallest and largest leave float32
        u, v = torch.randn(shape[0], generator=draw), torch.randn(shape[1], generator=draw)
        one = torch.outer(u, v) * size
        found = truncated_svd(one, Rank(3))
        assert torch.allclose(found.factors.matrix(), one, rtol=1e-4, atol=1e-5 * size)
        assert found.kept == pytest.approx(1.0, abs=1e-5)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    out = edited(tmp_path, torch.ones(4, 4), torch.full((4, 4), 1.5), 1.0)
    verify(out)
    path = out / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        verify(out)
