"""What an edit does tensor by tensor: plain numbers on disk are added, others are worked out."""

from __future__ import annotations

from dataclasses import dataclass

from weightsurgery.algebra.elementwise import DTYPES
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.surgery.edit import Edit
from weightsurgery.surgery.plan import Plan
from weightsurgery.vectors.deltas import DenseDelta, Stored, SumDelta

__all__ = ["DenseChange", "OtherChange", "Part", "changes_of"]


@dataclass(frozen=True)
class Part:
    """A term of one tensor's change.

    Attributes:
        stored: Where its numbers lie.
        factor: What they are multiplied with, sign and scale of the edit included.
        relative: Whether they are weights, from which the base's are to be taken away.
        elements: From here on nothing changes (a longer vocabulary).
    """

    stored: Stored
    factor: float
    relative: bool
    elements: int


@dataclass(frozen=True)
class DenseChange:
    """What is done to one tensor.

    Attributes:
        entry: The base's tensor.
        parts: What is added to it, in this order.
    """

    entry: TensorEntry
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class OtherChange:
    """What has to be worked out for one tensor, and is added as float32 numbers.

    Attributes:
        entry: The base's tensor.
        original: The tensor whose change it gets: itself, or the one it is tied to.
        scale: What the change is multiplied with, sign and scale of the edit included.
    """

    entry: TensorEntry
    original: str
    scale: float


def changes_of(
    edit: Edit, base: Checkpoint, plan: Plan
) -> dict[str, DenseChange | OtherChange] | None:
    """What an edit does, by tensor.

    Returns:
        None if it changes a tensor whose numbers :mod:`weightsurgery.algebra.elementwise` does not
        know, or that does not begin at a whole number of the file.
    """
    changes: dict[str, DenseChange | OtherChange] = {}
    for name, factor in plan.edited.items():
        entry = base.entry(name)
        if not entry.numel:
            continue
        if entry.dtype not in DTYPES or entry.start % (entry.nbytes // entry.numel):
            if any(vector.at(name) is not None for vector in edit.vectors().values()):
                return None
            continue
        original = plan.copies.get(name, name)
        scale = edit.sign * edit.scale * factor
        parts = None
        if not edit.factors:
            (vector,) = edit.vectors().values()
            delta = vector.at(original)
            if delta is None:
                continue
            parts = _parts(delta, entry, scale)
        if parts is None:
            changes[name] = OtherChange(entry, original, scale)
        else:
            changes[name] = DenseChange(entry, parts)
    return changes


def _parts(delta: SumDelta, entry: TensorEntry, scale: float) -> tuple[Part, ...] | None:
    found = []
    for factor, term in delta.terms:
        if not isinstance(term, DenseDelta) or term.stored is None:
            return None
        if term.stored.entry.dtype not in DTYPES:
            return None
        row = entry.numel // entry.rows
        elements = entry.numel if term.limit is None else min(term.limit * row, entry.numel)
        found.append(Part(term.stored, scale * factor, term.relative, elements))
    return tuple(found)
