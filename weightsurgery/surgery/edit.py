"""What an edit is: a change of one tensor at a time, ready to be applied at any scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import LARGEST_SCALE
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.vectors.deltas import Delta
from weightsurgery.vectors.statistics import InputStatistics
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["Edit", "Prepared", "check_scales", "task_of"]


@dataclass(frozen=True)
class Prepared:
    """One tensor's change, ready to be applied at any scale.

    Attributes:
        delta: The change, before the edit's sign and scale.
        facts: What the record says of it.
    """

    delta: Delta
    facts: Mapping[str, Any] = field(default_factory=dict)


class Edit(Protocol):
    """``W' = W + sign · scale · T'``.

    Attributes:
        name: Key in :data:`weightsurgery.surgery.edits.EDITS`.
        sign: −1 to take away, +1 to add.
        factors: Whether matrices are decomposed (needs more memory, uses the device).
        scale: λ.
    """

    name: ClassVar[str]
    sign: ClassVar[int]
    factors: ClassVar[bool]

    @property
    def scale(self) -> float:
        """λ."""
        ...

    def vectors(self) -> Mapping[str, TaskVector]:
        """The vectors by their role, for checks and the record."""
        ...

    def statistics(self) -> Mapping[str, InputStatistics]:
        """The activation statistics by their role, for checks and the record."""
        ...

    def check_statistics(self, base: Checkpoint, names: Iterable[str]) -> None:
        """Refuse statistics that lack one of these matrices which the edit changes."""
        ...

    def parameters(self) -> Mapping[str, Any]:
        """Every parameter, for the record."""
        ...

    def prepare(self, base: Checkpoint, name: str, device: torch.device | str) -> Prepared | None:
        """Work out one tensor's change; None where there is none."""
        ...


def task_of(edit: Edit) -> TaskVector:
    """What an edit takes away or adds: the first of its vectors, before those to keep."""
    return next(iter(edit.vectors().values()))


def check_scales(scale: float, *vectors: TaskVector) -> None:
    """Refuse an edit's scale, or a factor in its vectors, that is not finite or beyond all use.

    Raises:
        EditError: It is.
    """
    for factor in (1.0, *(factor for vector in vectors for factor, _ in vector.terms)):
        for value in (scale, factor, scale * factor):
            if not abs(value) <= LARGEST_SCALE:
                raise EditError(f"scale {value}", "Give a finite number, up to 1e30.")
