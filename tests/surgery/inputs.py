"""A base and fine-tunes in two layouts, and edits of them that take each way through the code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from tests.conftest import write_checkpoint
from weightsurgery import Add, Checkpoint, Negate, Project, Rank, Storage, open_vector

MATRICES = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(7)]


def write_inputs(root: Path, rows: int = 700) -> None:
    """``base``, ``tuned`` and ``keep`` below a directory; 1.4 MB a matrix by default."""
    generator = torch.Generator().manual_seed(0)

    def noise(rows: int) -> torch.Tensor:
        return torch.randn(rows, 1000, generator=generator)

    base = {name: noise(rows).bfloat16() for name in MATRICES}
    base |= {"model.norm.weight": torch.ones(1000).bfloat16(), "model.none": torch.zeros(0, 3)}
    write_checkpoint(root / "base", base, 2, {"a": 1})
    for name, shards in (("tuned", 2), ("keep", 3)):
        changed = {n: base[n].float() + 0.1 * noise(rows) for n in MATRICES}
        tuned = {n: t.bfloat16() for n, t in {**base, **changed}.items()}
        write_checkpoint(root / name, tuned, shards)


def vector(root: Path, base: Checkpoint, *names: str) -> Any:
    return open_vector(base, [str(root / name) for name in names])


def edits(root: Path, base: Checkpoint) -> dict[str, tuple[Any, Storage]]:
    """By name: windows of numbers as they lie, matrices worked out, and tensors in blocks."""
    tuned, keep = vector(root, base, "tuned"), vector(root, base, "keep")
    return {
        "stretches": (Negate(tuned, 0.7), Storage()),
        "matrices": (Project(tuned, (keep,), Rank(4)), Storage()),
        "blocks": (Add(tuned + keep), Storage(dtype="float32")),
        "stochastic": (Add(keep), Storage(rounding="stochastic")),
    }


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}
