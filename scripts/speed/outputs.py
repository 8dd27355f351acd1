"""What contestants wrote, compared: bytes, bf16 values, and energy of low-rank factors."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_LORA = "base_model.model."
_ELEMENTS = 1 << 22


class _Tensors:
    """All tensors of a folder's safetensors files, by name."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, "pt"))
            self._files |= dict.fromkeys(file.keys(), file)

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)

    def rows(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor in blocks of rows: no more is held at a time."""
        whole = self._files[name].get_slice(name)
        shape = whole.get_shape()
        step = max(1, _ELEMENTS // max(1, shape[-1] if len(shape) > 1 else 1))
        for start in range(0, shape[0], step):
            yield whole[start : start + step]


def agreement(reference: Path, out: Path) -> dict[str, Any]:
    """How an edited checkpoint compares with the reference.

    Returns:
        Whether the weight files are identical; names that are only on one side; the share of
        elements that differ and the most they differ by, in units in the last place of bf16.
    """
    shards = sorted(path.name for path in reference.glob("*.safetensors"))
    same = shards == sorted(path.name for path in out.glob("*.safetensors")) and all(
        filecmp.cmp(reference / name, out / name, shallow=False) for name in shards
    )
    with ExitStack() as stack:
        ours, theirs = _Tensors(reference, stack), _Tensors(out, stack)
        differing = total = most = 0
        for name in sorted(ours.names & theirs.names):
            for a, b in zip(ours.rows(name), theirs.rows(name), strict=True):
                apart = (_ordered(a) - _ordered(b)).abs()
                differing += int((apart > 0).sum())
                most = max(most, int(apart.max()))
                total += a.numel()
        return {
            "identical_files": same,
            "missing": sorted(ours.names - theirs.names),
            "extra": sorted(theirs.names - ours.names),
            "differing": differing / total,
            "most_ulps": most,
        }


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """bf16 as integers in the order of their values, so that neighbours differ by one."""
    if values.dtype != torch.bfloat16:
        raise SystemExit(f"expected bfloat16, found {values.dtype}")
    bits = values.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def captured(base: Path, finetuned: Path, out: Path) -> dict[str, Any]:
    """How much of a change its saved factors hold, over all matrices that have factors.

    Returns:
        ``energy``: squared norm of the factors' product, relative to the change's; ``explained``:
        1 − (squared norm of what they miss), which is the same for exact singular vectors;
        matrices; bytes of the weight files, and of the factors alone.
    """
    with ExitStack() as stack:
        before, after, factors = (_Tensors(folder, stack) for folder in (base, finetuned, out))
        whole = held = missed = 0.0
        size = matrices = 0
        for name in sorted(before.names):
            pair = _factors(factors, name)
            if pair is None:
                continue
            left, right, stored = pair
            change = after[name].float() - before[name].float()
            norm = float(change.double().square().sum())
            product = float(((left.T @ left).double() * (right.T @ right).double()).sum())
            inner = float(((change.T @ left).double() * right.double()).sum())
            whole, held = whole + norm, held + product
            missed += norm - 2 * inner + product
            size, matrices = size + stored, matrices + 1
        return {
            "energy": held / whole,
            "explained": 1 - missed / whole,
            "matrices": matrices,
            "file_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
            "factor_bytes": size,
        }


def _factors(tensors: _Tensors, name: str) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """A matrix's ``left`` and ``right``, so that it is ``left @ right.T``; and their bytes."""
    ours = [f"{name}::{part}" for part in "USV"]
    stem = _LORA + name.removesuffix(".weight")
    theirs = [f"{stem}.lora_{part}.weight" for part in "BA"]
    if tensors.names.issuperset(ours):
        parts = [tensors[part_name] for part_name in ours]
        left, right = parts[0] * parts[1], parts[2]
    elif tensors.names.issuperset(theirs):  # its alpha is its rank: the product is not scaled
        parts = [tensors[part_name] for part_name in theirs]
        left, right = parts[0].float(), parts[1].float().T
    else:
        return None
    return left, right, sum(part.numel() * part.element_size() for part in parts)
