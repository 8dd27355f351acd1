"""The grid of a sweep, and every tensor's change at its settings, decomposed once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from weightsurgery.algebra.discriminate import SIDES, SOFT_EPSILON
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.algebra.ridges import Ridges
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import LARGEST_SCALE
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.errors import EditError
from weightsurgery.suggestions import one_of
from weightsurgery.surgery.discriminating import Decomposed, Learn, Project, or_nothing
from weightsurgery.vectors.deltas import FactorDelta
from weightsurgery.vectors.statistics import total_gram

__all__ = ["Changes", "Grid", "Setting"]

# Queries, keys and values read one input, and so do gate and up; another layer's may come between.
_INPUTS_HELD = 2


@dataclass(frozen=True)
class Setting:
    """The parameters of an edit that its change depends on.

    Attributes:
        rank: Factors of the task, and of tasks to keep unless the edit has a keep rank.
        side: One of :data:`weightsurgery.algebra.discriminate.SIDES`.
        epsilon: Ridge of the activation statistics, or of the side soft; None where there is none.
    """

    rank: int
    side: str
    epsilon: float | None


@dataclass(frozen=True)
class Grid:
    """The values to try; every combination is a cell.

    Attributes:
        scales: Values of λ, positive.
        ranks: Numbers of factors.
        sides: Out of :data:`weightsurgery.algebra.discriminate.SIDES`.
        epsilons: Ridges: of the side soft alone, if that is among the sides, else of activation
            statistics; empty without these, or for the default.

    Raises:
        EditError: No value, one given twice, or one that makes no sense.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    ranks: tuple[int, ...] = (16, 64)
    sides: tuple[str, ...] = ("right", "both")
    epsilons: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        axes = {"scales": self.scales, "ranks": self.ranks, "sides": self.sides}
        for name, values in {**axes, "epsilons": self.epsilons}.items():
            if name in axes and not values:
                raise EditError(f"a sweep over no {name}", "Give at least one value.")
            for value in values:
                if values.count(value) > 1:
                    raise EditError(f"{value} twice among the {name}", "Give each value once.")
        for scale in self.scales:
            if not 0 < scale <= LARGEST_SCALE:
                raise EditError(f"scale {scale}", "Give a positive number, up to 1e30.")
        for rank in self.ranks:
            Rank(rank)
        for side in self.sides:
            if side not in SIDES:
                raise EditError(f"side {side!r}", one_of(side, SIDES))
        for epsilon in self.epsilons:
            if not (math.isfinite(epsilon) and epsilon >= 0):
                raise EditError(f"epsilon {epsilon}", "Give a ridge from 0 on, such as 0.001.")

    def settings(self) -> Iterator[Setting]:
        """Every combination but the scales."""
        for rank in self.ranks:
            for side in self.sides:
                for epsilon in self.ridges(side):
                    yield Setting(rank, side, epsilon)

    def ridges(self, side: str) -> tuple[float | None, ...]:
        """The ridges to try with a side; None where it has none."""
        if side == "soft":
            return self.epsilons or (SOFT_EPSILON,)
        return (None,) if "soft" in self.sides else self.epsilons or (None,)


class Changes:
    """An edit's changes at every setting of a grid, tensor by tensor.

    A tensor's task and keep tasks are decomposed once, at the largest rank, and truncated for the
    smaller ones; their span is found once per rank, and the eigenvectors of the layer's inputs
    once (see :mod:`weightsurgery.algebra.ridges`), for all layers that share them.

    The leading factors of a larger truncation are those of the smaller one exactly, except where
    the SVD is iterative (over 256 columns on the short side): there they agree within the
    residuals of both.

    Args:
        edit: Its tasks, basis, keep rank and seed; rank, side and ridge are the grid's.
        base: The checkpoint.
        grid: The values to try.
        device: Where to decompose.
    """

    def __init__(
        self, edit: Project | Learn, base: Checkpoint, grid: Grid, device: torch.device
    ) -> None:
        self._edit = replace(edit, rank=Rank(max(grid.ranks)))
        self._base = base
        self._grid = grid
        self._device = device
        self._inputs: list[tuple[torch.Tensor, Ridges]] = []
        self._lock = threading.Lock()

    def at(self, name: str) -> dict[Setting, FactorDelta]:
        """One tensor's change by setting, as it is stored; empty where there is none."""
        decomposed = self._edit.decompose(self._base, name, self._device)
        if decomposed is None:
            return {}
        ridges = self._ridges(name) if self._edit.keep_inputs else None
        changes = {}
        for rank in self._grid.ranks:
            truncated = self._truncated(decomposed, rank)
            task, keep = truncated.task.factors, self._edit.keep_space(truncated)
            for side in self._grid.sides:
                projected = None
                for epsilon in self._grid.ridges(side):
                    edit = replace(self._edit, side=side, epsilon=epsilon)
                    if projected is None or side == "soft":  # the other sides know of no ridge
                        projected = edit.discriminated(task, keep)
                    change = projected
                    if ridges is not None and epsilon is not None:
                        change = ridges.apply(projected, epsilon, edit.untouched(keep))
                    setting = Setting(rank, side, epsilon)
                    changes[setting] = decomposed.stored(or_nothing(change, task))
        return changes

    def _truncated(self, decomposed: Decomposed, rank: int) -> Decomposed:
        keeps: Sequence[Truncation] = decomposed.keeps
        if self._edit.keep_rank is None:
            keeps = [_leading(truncation, rank) for truncation in keeps]
        return Decomposed(_leading(decomposed.task, rank), tuple(keeps), decomposed.transposed)

    def _ridges(self, name: str) -> Ridges:
        width = input_width(self._base, name)
        gram = total_gram(self._edit.keep_inputs, name, width)
        with self._lock:  # a second layer with the same input waits for the first one's
            for held_gram, ridges in self._inputs:
                if held_gram.shape == gram.shape and torch.equal(held_gram, gram):
                    return ridges
            ridges = Ridges(gram.to(self._device))
            self._inputs = [*self._inputs[1 - _INPUTS_HELD :], (gram, ridges)]
        return ridges


def _leading(truncation: Truncation, rank: int) -> Truncation:
    return Truncation(truncation.factors.truncated(rank), truncation.total, truncation.residual)
