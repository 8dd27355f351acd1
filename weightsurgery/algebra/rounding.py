"""Rounding from float32 arithmetic to the stored dtype, and how much of a change survives it.

A bfloat16 number has 8 significant bits, so a small change of a weight often rounds to no change
at all. Nearest rounding loses such changes silently; stochastic rounding (Connolly, Higham &
Mary 2021, mode 1) keeps them on average.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError

__all__ = ["ChangeStats", "compute_dtype", "generator_for", "round_to", "stochastic_round"]


def _bits_as() -> Mapping[torch.dtype, torch.dtype]:
    return {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def compute_dtype(stored: torch.dtype) -> torch.dtype:
    """Dtype of the arithmetic: float64 for float64 weights, float32 for everything smaller."""
    return torch.float64 if stored == torch.float64 else torch.float32


def generator_for(seed: int, name: str, row: int) -> torch.Generator:
    """A generator that depends on seed, tensor and row alone, so that a resumed run agrees."""
    digest = hashlib.blake2b(f"{seed}\0{name}\0{row}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def stochastic_round(
    values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Round to one of the two neighbours, with probability by nearness: unbiased.

    Args:
        values: Float32 or float64, finite.
        dtype: float16, bfloat16 or float32.
        generator: Source of the random numbers, on the CPU.

    Returns:
        Same shape, in ``dtype``; exactly representable values never move. Values beyond the
        largest finite number of ``dtype`` round as to nearest (to infinity), for the caller to
        find.

    Raises:
        EditError: A dtype without known neighbours.
    """
    if dtype not in _bits_as():
        raise EditError(
            f"stochastic rounding to {dtype}", "Use nearest rounding, or --dtype bfloat16."
        )
    nearest = values.to(dtype)
    exact = nearest.to(values.dtype)
    bits = nearest.view(_bits_as()[dtype])
    # Magnitudes are ordered like their bit patterns: one down if nearest went away from zero.
    low = torch.where(exact.abs() > values.abs(), bits - 1, bits)
    high = low + 1
    low_value = low.view(dtype).to(values.dtype).abs()
    gap = high.view(dtype).to(values.dtype).abs() - low_value
    chance = (values.abs() - low_value) / gap
    draw = torch.rand(values.shape, generator=generator, dtype=values.dtype)
    rounded = torch.where(draw < chance, high, low).view(dtype)
    inexact = (exact != values) & torch.isfinite(gap) & torch.isfinite(exact)
    return torch.where(inexact, rounded, nearest)


def round_to(
    values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Round to the stored dtype: to nearest (ties to even), or stochastically with a generator."""
    if generator is None or values.dtype == dtype:
        return values.to(dtype)
    return stochastic_round(values, dtype, generator)


@dataclass
class ChangeStats:
    """Statistics of the intended and the written change, summed over the blocks of a tensor.

    With ``d`` the intended change and ``w`` the written one (the stored value, minus the one that
    would be stored without the change):

    Attributes:
        base: ``‖W‖²``.
        meant: ``‖d‖²``.
        written: ``‖w‖²``.
        missed: ``‖w − d‖²``.
        along: ``⟨W, d⟩``.
        wanted: Number of elements with ``d ≠ 0``.
        moved: Number of those with ``w ≠ 0``.
    """

    base: float = 0.0
    meant: float = 0.0
    written: float = 0.0
    missed: float = 0.0
    along: float = 0.0
    wanted: int = 0
    moved: int = 0

    def add(self, before: torch.Tensor, meant: torch.Tensor, after: torch.Tensor) -> None:
        """Add a block: the value stored without the change, the change, the stored value.

        All three have the same shape, in the arithmetic's dtype; the sums are float64.
        """
        wide = [tensor.reshape(-1).double() for tensor in (before, meant)]
        written = after.reshape(-1).double() - wide[0]
        missed = written - wide[1]
        pairs = ((wide[0], wide[0]), (wide[1], wide[1]), (written, written), (missed, missed))
        sums = [float(torch.dot(a, b)) for a, b in (*pairs, (wide[0], wide[1]))]
        wanted = wide[1] != 0
        moved = wanted & (written != 0)
        counts = (int(torch.count_nonzero(mask)) for mask in (wanted, moved))
        self.merge(ChangeStats(sums[0], sums[1], sums[2], sums[3], sums[4], *counts))

    def merge(self, other: ChangeStats) -> None:
        """Add another tensor's or part's sums."""
        for name in ("base", "meant", "written", "missed", "along", "wanted", "moved"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def finite(self) -> bool:
        """Whether weights, change and result were: their squares are."""
        return math.isfinite(self.base + self.meant + self.written)

    @property
    def relative(self) -> float:
        """``‖w‖ / ‖W‖``: size of the written change relative to the weights."""
        return math.sqrt(self.written / self.base) if self.base > 0 else float(self.written > 0)

    @property
    def surviving(self) -> float:
        """Fraction of the changed elements that survived rounding; 1 if none was to change."""
        return min(1.0, self.moved / self.wanted) if self.wanted else 1.0

    @property
    def agreement(self) -> float:
        """``⟨w, d⟩ / ‖d‖²``: 1 when the written change is the intended one, negative if flipped."""
        inner = (self.written + self.meant - self.missed) / 2
        return inner / self.meant if self.meant > 0 else 1.0

    @property
    def lost(self) -> float:
        """``‖w − d‖ / ‖d‖``: size of the rounding error relative to the intended change."""
        return math.sqrt(self.missed / self.meant) if self.meant > 0 else 0.0
