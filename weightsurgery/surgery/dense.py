"""Edits whose changes are plain numbers on disk: where they lie, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

from weightsurgery.algebra.elementwise import DTYPES
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.surgery.edits import Edit
from weightsurgery.surgery.plan import Plan
from weightsurgery.vectors.task_vector import DenseDelta, Stored, SumDelta

__all__ = ["DenseChange", "Part", "dense_changes"]


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


def dense_changes(edit: Edit, base: Checkpoint, plan: Plan) -> dict[str, DenseChange] | None:
    """The changes of an edit without decompositions, by tensor.

    Returns:
        None if one is not stored as bfloat16, float16 or float32 numbers of such a tensor.
    """
    (vector,) = edit.vectors().values()
    changes: dict[str, DenseChange] = {}
    for name, factor in plan.edited.items():
        entry = base.entry(name)
        delta = vector.at(plan.copies.get(name, name))
        if delta is None or not entry.numel:
            continue
        parts = _parts(delta, entry, edit.sign * edit.scale * factor)
        if parts is None:
            return None
        changes[name] = DenseChange(entry, parts)
    return changes


def _parts(delta: SumDelta, entry: TensorEntry, scale: float) -> tuple[Part, ...] | None:
    found = []
    for factor, term in delta.terms:
        if not isinstance(term, DenseDelta) or term.stored is None:
            return None
        if entry.dtype not in DTYPES or term.stored.entry.dtype not in DTYPES:
            return None
        if entry.start % (entry.nbytes // entry.numel):
            return None  # an element may lie across two windows
        row = entry.numel // entry.rows
        elements = entry.numel if term.limit is None else min(term.limit * row, entry.numel)
        found.append(Part(term.stored, scale * factor, term.relative, elements))
    return tuple(found)
