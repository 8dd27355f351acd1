"""The changes of an edit by tensor, and adding them to the piece that lies in a window.

Plain numbers on disk are added as they are; others are computed before. A window begins and ends
anywhere in a tensor, so elements are counted from the tensor's first. Of files that have the base's
layout the same window was read; of others, what is needed is read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsurgery.algebra.elementwise import DTYPES, Term, combine, finite
from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.deferred import torch
from weightsurgery.surgery.arithmetic import Arithmetic, Buffers
from weightsurgery.surgery.edit import Edit, Prepared, refuse_non_finite
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.vectors.deltas import DenseDelta, Stored, SumDelta, needs_base

if TYPE_CHECKING:
    from weightsurgery.surgery.as_checkpoint import Storage

__all__ = ["ChangeTerm", "DenseChange", "OtherChange", "Pieces", "changes_of", "rewritten"]


@dataclass(frozen=True)
class ChangeTerm:
    """A term of one tensor's change.

    Attributes:
        stored: Where its numbers lie.
        factor: What they are multiplied with, sign and scale of the edit included.
        relative: Whether they are weights, from which the base's are to be taken away.
        elements: Elements that it changes; the rest does not change (a longer vocabulary).
    """

    stored: Stored
    factor: float
    relative: bool
    elements: int


@dataclass(frozen=True)
class DenseChange:
    """A tensor's change whose terms are plain numbers on disk.

    Attributes:
        entry: The base's tensor.
        parts: The terms that are added, in this order.
    """

    entry: TensorEntry
    parts: tuple[ChangeTerm, ...]


@dataclass(frozen=True)
class OtherChange:
    """A tensor's change that has to be computed, and is added as float32 numbers.

    Attributes:
        entry: The base's tensor.
        original: The tensor whose change it gets: itself, or the one it is tied to.
        scale: What the change is multiplied with, sign and scale of the edit included.
    """

    entry: TensorEntry
    original: str
    scale: float


def changes_of(
    edit: Edit, base: Checkpoint, plan: EditPlan
) -> dict[str, DenseChange | OtherChange] | None:
    """The changes of an edit, by tensor.

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
            if any(vector.rows_at(name) is not None for vector in edit.vectors().values()):
                return None
            continue
        original = plan.copies.get(name, name)
        scale = edit.sign * edit.scale * factor
        parts = None
        if not edit.factors:
            (vector,) = edit.vectors().values()
            if (rows := vector.rows_at(original)) is None:
                continue
            # Factors would be read to be asked for: all of a model's before anything is done.
            if rows and (delta := vector.at(original)) is not None:
                parts = _parts(delta, entry, scale)
        if parts is None:
            changes[name] = OtherChange(entry, original, scale)
        else:
            changes[name] = DenseChange(entry, parts)
    return changes


def rewritten(
    edit: Edit, base: Checkpoint, plan: EditPlan, storage: Storage
) -> dict[str, DenseChange | OtherChange] | None:
    """The same, where the output is the base with some bytes rewritten.

    Returns:
        None if not: if it gets another dtype, or rounds otherwise than to nearest.
    """
    if storage.rounding != "nearest" or not base.as_stored:
        return None
    if any(header is not base.shards[header.shard] for header in plan.shards):
        return None
    return changes_of(edit, base, plan)


def _parts(delta: SumDelta, entry: TensorEntry, scale: float) -> tuple[ChangeTerm, ...] | None:
    parts = []
    for factor, term in delta.terms:
        if not isinstance(term, DenseDelta) or term.stored is None:
            return None
        if term.stored.entry.dtype not in DTYPES:
            return None
        row = entry.numel // entry.rows
        elements = entry.numel if term.limit is None else min(term.limit * row, entry.numel)
        parts.append(ChangeTerm(term.stored, scale * factor, term.relative, elements))
    return tuple(parts)


class Pieces:
    """Adds changes to a window of a shard's file; threads bring their own buffers.

    Args:
        edit: The edit.
        base: The checkpoint that is edited.
        arithmetic: Adds the terms.
    """

    def __init__(self, edit: Edit, base: Checkpoint, arithmetic: Arithmetic) -> None:
        self._edit, self._base = edit, base
        self._arithmetic = arithmetic

    def dense(
        self,
        change: DenseChange,
        start: int,
        data: memoryview,
        beside: Mapping[int, memoryview],
        buffers: Buffers,
    ) -> ChangeStats:
        """Add the terms of a change that are numbers on disk.

        Args:
            change: Of a tensor that has bytes in the window.
            start: Where in the file the window begins.
            data: The window's bytes, in which the base's numbers become the edited ones.
            beside: The same window of other checkpoints, by their ``id``.
            buffers: This thread's.

        Raises:
            NonFiniteError: NaN or infinity in the base, the change or the result.
        """
        entry = change.entry
        first, last = _inside(entry, start, len(data))
        total = ChangeStats()
        # Where a term ends early, what follows has fewer terms.
        ends = sorted({min(max(part.elements, first), last) for part in change.parts} | {last})
        for end in ends:
            parts = [part for part in change.parts if part.elements >= end]
            piece = _bytes_of(entry, first, end, start, data)
            if parts and end > first:
                terms = [
                    Term(
                        self._numbers(part, entry, first, end, start, beside, (order, buffers)),
                        part.stored.entry.dtype,
                        part.factor,
                        part.relative,
                    )
                    for order, part in enumerate(parts)
                ]
                total.merge(self._combine(entry, piece, first, terms))
            elif end > first:  # the difference to itself
                same = [Term(piece, entry.dtype, 1.0, True)]
                total.merge(self._combine(entry, piece, first, same))
            first = end
        return total

    def other(
        self,
        change: OtherChange,
        prepared: Prepared,
        start: int,
        data: memoryview,
        buffers: Buffers,
    ) -> ChangeStats:
        """Add a change that was computed; see :meth:`dense`.

        Args:
            change: Of a tensor that has bytes in the window.
            prepared: The computed change.
            start: Where in the file the window begins.
            data: The window's bytes.
            buffers: This thread's.
        """
        entry = change.entry
        first, last = _inside(entry, start, len(data))
        columns = math.prod(entry.columns)
        top, bottom = first // columns, -(-last // columns)  # whole rows
        shape = (bottom - top, *entry.columns)
        memory = buffers.get("meant", 4 * (bottom - top) * columns)
        meant = torch.frombuffer(memory, dtype=torch.float32).zero_().view(shape)
        before = meant
        if needs_base(prepared.delta):
            before = self._base.rows(entry.name, top, bottom).float()
        prepared.delta.add_rows(meant, top, bottom, change.scale, before)
        used = memory[4 * (first - top * columns) : 4 * (last - top * columns)]
        piece = _bytes_of(entry, first, last, start, data)
        return self._combine(entry, piece, first, [Term(used, "F32", 1.0, relative=False)])

    def _numbers(
        self,
        part: ChangeTerm,
        entry: TensorEntry,
        first: int,
        last: int,
        start: int,
        beside: Mapping[int, memoryview],
        memory: tuple[int, Buffers],
    ) -> memoryview:
        """Elements ``first:last`` of a term: from the window that was read, or from disk."""
        stored = part.stored.entry
        window = beside.get(id(part.stored.checkpoint))
        if window is not None and stored.name == entry.name:
            return _bytes_of(stored, first, last, start, window)
        width = _width(stored)
        view = memory[1].get(("term", memory[0]), (last - first) * width)
        part.stored.checkpoint.read_into(stored, first * width, view)
        return view

    def _combine(
        self, entry: TensorEntry, piece: memoryview, first: int, terms: Sequence[Term]
    ) -> ChangeStats:
        stats = self._arithmetic.combine(piece, entry.dtype, terms, piece)
        if not stats.finite:
            # The base's numbers are gone: read them again, for exact sums or for the message.
            fresh = memoryview(bytearray(len(piece)))
            self._base.read_into(entry, first * _width(entry), fresh)
            stats = combine(fresh, entry.dtype, terms, piece)
            if not stats.finite:
                change_ok = all(finite(term.data, term.dtype) for term in terms)
                base_ok = finite(fresh, entry.dtype)
                change_ok &= math.isfinite(stats.meant)
                refuse_non_finite(self._edit, self._base, entry, entry.dtype, base_ok, change_ok)
        return stats


def _width(entry: TensorEntry) -> int:
    """Bytes of one element; the tensor is not empty."""
    return entry.nbytes // entry.numel


def _inside(entry: TensorEntry, start: int, length: int) -> tuple[int, int]:
    """The elements that lie in a window; none lies in two (see `dense.changes_of`)."""
    width = _width(entry)
    first = max(0, (start - entry.start) // width)
    return first, min(entry.numel, (start + length - entry.start) // width)


def _bytes_of(
    entry: TensorEntry, first: int, last: int, start: int, window: memoryview
) -> memoryview:
    """Elements ``first:last`` of a tensor in a window that begins at ``start`` of its file."""
    width = _width(entry)
    offset = entry.start + first * width - start
    return window[offset : offset + (last - first) * width]
