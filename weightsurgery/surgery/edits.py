"""The plain edits, which take a vector as it is, and the tables of all edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.deferred import torch
from weightsurgery.surgery.discriminating import Learn, Project
from weightsurgery.surgery.edit import Prepared, check_scales
from weightsurgery.vectors.deltas import FactorDelta
from weightsurgery.vectors.statistics import InputStatistics
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["DISCRIMINATING", "EDITS", "PLAIN", "Add", "Negate"]


@dataclass(frozen=True)
class _Plain:
    """A vector as it is (Ilharco et al. 2023, arXiv 2212.04089).

    Attributes:
        vector: The task vector.
        scale: λ.
    """

    vector: TaskVector
    scale: float = 1.0
    factors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_scales(self.scale, self.vector)

    def vectors(self) -> Mapping[str, TaskVector]:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        return {"vector": self.vector}

    def statistics(self) -> Mapping[str, InputStatistics]:
        """See :class:`~weightsurgery.surgery.edit.Edit`; none."""
        return {}

    def check_statistics(self, base: Checkpoint, names: Iterable[str]) -> None:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""

    def parameters(self) -> Mapping[str, Any]:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        return {"scale": self.scale}

    def prepare(self, base: Checkpoint, name: str, device: torch.device | str) -> Prepared | None:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        delta = self.vector.at(name)
        if delta is None:
            return None
        terms = [term for _, term in delta.terms]
        if all(isinstance(term, FactorDelta) for term in terms):
            ranks = [term.right.shape[1] for term in terms if isinstance(term, FactorDelta)]
            return Prepared(delta, {"rank": sum(ranks)})
        return Prepared(delta)

    def most_factors(self) -> int | None:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        return None


@dataclass(frozen=True)
class Negate(_Plain):
    """``W' = W − λ T``."""

    name: ClassVar[str] = "negate"
    sign: ClassVar[int] = -1


@dataclass(frozen=True)
class Add(_Plain):
    """``W' = W + λ T``."""

    name: ClassVar[str] = "add"
    sign: ClassVar[int] = 1


PLAIN: Mapping[str, type[Negate] | type[Add]] = {"negate": Negate, "add": Add}
DISCRIMINATING: Mapping[str, type[Project] | type[Learn]] = {"project": Project, "learn": Learn}
EDITS: Mapping[str, type[Negate] | type[Add] | type[Project] | type[Learn]] = {
    **PLAIN,
    **DISCRIMINATING,
}
