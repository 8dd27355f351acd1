"""A checkpoint read lazily under another's names, without copying it.

A tensor that only has another name, or lies in one piece inside another (an expert in a stack), is
a range of bytes in the same file. Any other is assembled block by block while it is read: one
expert's matrix at a time, never a stack of them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from typing_extensions import override

from weightsurgery.checkpoint.derived import Derived
from weightsurgery.checkpoint.layout import Layout, TensorEntry
from weightsurgery.checkpoint.names.matching import Match, TensorLocation
from weightsurgery.checkpoint.names.matrices import Block, Matrix
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.deferred import numpy as np
from weightsurgery.errors import MismatchError

__all__ = ["Restated"]

# The block each thread assembled last, as (tensor, number) → bytes: a block that is read in parts
# is assembled once.
_latest = threading.local()


class Restated(Derived):
    """A checkpoint under the base's names, in the base's layout.

    Args:
        inner: As it is stored.
        match: How its tensors go together with the base's.

    Raises:
        MismatchError: A tensor would be assembled from numbers of different dtypes.
    """

    def __init__(self, inner: Checkpoint, match: Match) -> None:
        self.inner = inner
        self.notes = inner.notes
        self._key = object()  # identifies this checkpoint's blocks in the threads' caches
        entries: dict[str, TensorEntry] = {}
        self._assembled: dict[str, TensorLocation] = {}
        self._stored: dict[str, tuple[str, ...]] = {}
        for name, place in match.places.items():
            entries[name] = self._entry(name, place)
            self._stored[name] = place.names
        for name in match.rest:
            if name not in entries:
                entries[name], self._stored[name] = inner.entry(name), (name,)
        # No shards: their windows do not correspond to those of the base's.
        super().__init__(inner, Layout({}, entries))

    def _entry(self, name: str, place: TensorLocation) -> TensorEntry:
        old = [self.inner.entry(entry) for entry in place.names]
        if len({entry.dtype for entry in old}) > 1:
            raise MismatchError(
                f"{self.inner.source.name}: {old[0].name!r} is stored in {old[0].dtype},"
                f" {old[-1].name!r} otherwise: {name!r} of the base would be put together of both",
                "Save it again in one dtype.",
            )
        first = old[0]
        width = first.nbytes // first.numel if first.numel else 0
        run = place.blocks[0].run if len(place.blocks) == 1 else None
        if run is not None and self.inner.as_stored:
            start = first.start + run.first * width
        else:
            start = first.start  # not used: it is assembled when it is read
            self._assembled[name] = place
        size = math.prod(place.shape) * width
        return TensorEntry(name, first.dtype, place.shape, first.shard, start, start + size)

    @override
    def read_into(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        place = self._assembled.get(entry.name)
        if place is None:
            self.inner.read_into(entry, offset, buffer)
            return
        if offset < 0 or offset + len(buffer) > entry.nbytes:
            raise ValueError(f"bytes {offset}+{len(buffer)} outside tensor {entry.name!r}")
        width = entry.nbytes // entry.numel
        end = offset + len(buffer)
        for number, block, begin in _blocks(place, width):
            first, last = max(begin, offset), min(begin + block.numel * width, end)
            if first < last:
                into = buffer[first - offset : last - offset]
                self._read_block(entry.name, number, block, width, first - begin, into)

    def _read_block(
        self, name: str, number: int, block: Block, width: int, offset: int, into: memoryview
    ) -> None:
        if block.run is not None:
            stored = self.inner.entry(block.run.name)
            self.inner.read_into(stored, block.run.first * width + offset, into)
            return
        content = _remembered((self._key, name, number), partial(self._make, block, width))
        into[:] = content[offset : offset + len(into)]

    def _make(self, block: Block, width: int) -> memoryview:
        out = np.empty(block.shape, dtype=f"V{width}")
        at = 0
        for piece in block.pieces:
            out[:, at : at + piece.shape[1]] = self._piece(piece, width)
            at += piece.shape[1]
        return memoryview(out.view(np.uint8).reshape(-1).data)

    def _piece(self, piece: Matrix, width: int) -> np.ndarray:
        raw = bytearray(piece.span * width)
        stored = self.inner.entry(piece.name)
        self.inner.read_into(stored, piece.first * width, memoryview(raw))
        numbers = np.frombuffer(raw, dtype=f"V{width}")
        steps = tuple(step * width for step in piece.steps)
        return np.lib.stride_tricks.as_strided(numbers, piece.shape, steps)

    @override
    def inner_names(self, names: Iterable[str]) -> list[str]:
        every = (stored for name in names for stored in self._stored[name])
        return list(dict.fromkeys(every))

    @override
    def handle(self, shard: str) -> int:
        return self.inner.handle(shard)


def _blocks(place: TensorLocation, width: int) -> Iterator[tuple[int, Block, int]]:
    """Number, block and first byte of each block."""
    begin = 0
    for number, block in enumerate(place.blocks):
        yield number, block, begin
        begin += block.numel * width


def _remembered(key: object, make: Callable[[], memoryview]) -> memoryview:
    if getattr(_latest, "key", None) != key:
        _latest.key = _latest.block = None  # not both at once
        _latest.block = make()
        _latest.key = key
    block: memoryview = _latest.block
    return block
