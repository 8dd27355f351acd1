"""Edits, window by window of the shards' files.

An output shard is the base shard with some byte ranges rewritten, so it is made the way it lies on
disk: a window of the base's file is read, the changes of the tensors in it are added in place,
and the window is written past the page cache. A byte is touched once: the output's
SHA-256, and the inputs' where it is not known yet, are taken from the same memory.

A thread owns its buffers and does all work on a window; only the hashes go in order.
Since a hash is sequential, two shards go side by side where two can be hashed at a time, and as
many such pairs are under way as there are cores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.digest_cache import Stamp, stamp
from weightsurgery.checkpoint.digests import known_sha256, remember_sha256
from weightsurgery.checkpoint.hashing import PAIRED, Sha256
from weightsurgery.checkpoint.layout import ShardHeader, TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.writer import CheckpointWriter
from weightsurgery.surgery.arithmetic import Buffers, OnHost, arithmetic_on
from weightsurgery.surgery.changes import DenseChange, OtherChange, Pieces, rewritten
from weightsurgery.surgery.ordering import HashOrder, Prefetch, in_turn
from weightsurgery.surgery.stream import Stream
from weightsurgery.surgery.workers import cores, results, torch_threads

__all__ = ["WINDOW", "Windows", "merged"]

# Bytes of a shard's file worked on at a time: with a fine-tune's beside it, it stays in cache.
WINDOW = 1 << 21

# Threads beyond the cores, to work while others wait for the disk.
WAITING = 1


@dataclass
class _Tensor:
    """Progress of one tensor."""

    missing: int
    stats: list[ChangeStats | None]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _ShardInFlight:
    """One shard under way.

    Attributes:
        header: Of base and output.
        changes: Of the tensors that change, in the order of their bytes.
        beside: Checkpoints whose shard of this name has the same tensors at the same offsets, so
            that a window of theirs is one read.
        order: Order in which windows are added to the inputs' hashes.
        output: SHA-256 of the output.
        inputs: SHA-256 of the base's and of ``beside``'s files, where it is not known yet.
    """

    header: ShardHeader
    changes: list[DenseChange | OtherChange]
    beside: list[Checkpoint]
    order: HashOrder
    output: Sha256 = field(default_factory=Sha256)
    inputs: dict[Path, tuple[Sha256, Stamp]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Group:
    """Shards that go side by side, so that their outputs are hashed together: one or two."""

    shards: Sequence[_ShardInFlight]
    order: HashOrder

    @property
    def windows(self) -> int:
        """Of the longest."""
        return -(-max(shard.header.size for shard in self.shards) // WINDOW)


class Windows:
    """One edit over all shards; see the module's text.

    Args:
        stream: The run: edit, base, plan, writer and progress.
        changes: The changes by tensor.

    Attributes:
        inputs: After :meth:`run`: SHA-256 of those input files that were hashed meanwhile.
        outputs: After :meth:`run`: SHA-256 of the output's shards, by name.
    """

    def __init__(
        self, stream: Stream[CheckpointWriter], changes: Mapping[str, DenseChange | OtherChange]
    ) -> None:
        self.stream = stream
        self.inputs: dict[Path, str] = {}
        self.outputs: dict[str, str] = {}
        self._other = [change for change in changes.values() if isinstance(change, OtherChange)]
        self._computed = {change.entry.name for change in self._other}
        # Tensors that an interrupted run computed and recorded.
        self._resumed = self._computed & stream.writer.done.keys()
        # Computed changes come back from their device, and are added on the processor.
        self._arithmetic = OnHost() if self._other else arithmetic_on(stream.device)
        self._pieces = Pieces(stream.edit, stream.base, self._arithmetic)
        self._prefetch: Prefetch | None = None
        self._failed = threading.Event()
        self._lock = threading.Lock()
        self._shards = [self._open(header, changes) for header in stream.base.shards.values()]
        self._tensors: dict[str, _Tensor] = {}
        for shard in self._shards:
            for entry in shard.header.entries:
                count = len(_windows_of(entry))
                self._tensors[entry.name] = _Tensor(count, [None] * count)

    @classmethod
    def of(cls, stream: Stream[CheckpointWriter]) -> Windows | None:
        """The edit as windows; None if the output is no base with some bytes rewritten.

        That is: if it gets another dtype, or rounds otherwise than to nearest.
        """
        changes = rewritten(stream.edit, stream.base, stream.plan, stream.storage)
        return None if changes is None else cls(stream, changes)

    def run(self, workers: int) -> None:
        """Do all windows.

        Raises:
            WeightSurgeryError: A tensor holds NaN or infinity, or a disk fails.
        """
        for name, tensor in self._tensors.items():
            if not tensor.stats and name not in self._resumed:
                self.stream.writer.finish(name, {}, resumable=False)
        if self._other:
            # One shard after another, so that few changes wait to be added.
            groups, together = [_Group([s], HashOrder(self._failed)) for s in self._shards], 1
            done = self._resumed
            changes = [change for shard in self._shards for change in shard.changes]
            names = [c.entry.name for c in changes if isinstance(c, OtherChange)]
            names = [name for name in names if name not in done]
            self._prefetch = Prefetch(self.stream.prepared, names, workers)
            # A result would depend on the number of threads in an operation.
            threads: AbstractContextManager[None] = torch_threads(1)
        else:
            groups, together = _groups(self._shards, self._failed), cores()
            threads = nullcontext()
        tasks = in_turn(groups, together)
        with threads, ThreadPoolExecutor(workers + WAITING, "ws") as pool:
            try:
                results([pool.submit(self._work, tasks) for _ in range(workers + WAITING)])
            except BaseException:
                self._failed.set()
                raise
            finally:
                if self._prefetch is not None:
                    self._prefetch.close()
        for shard in self._shards:
            self.outputs[shard.header.shard] = shard.output.hexdigest()
            for path, (digest, before) in shard.inputs.items():
                self.inputs[path] = digest.hexdigest()
                remember_sha256(path, before, self.inputs[path])

    def _open(
        self, header: ShardHeader, changes: Mapping[str, DenseChange | OtherChange]
    ) -> _ShardInFlight:
        base = self.stream.base
        shard_changes = [changes[entry.name] for entry in header.entries if entry.name in changes]
        parts = [part for c in shard_changes if isinstance(c, DenseChange) for part in c.parts]
        others = {id(part.stored.checkpoint): part.stored.checkpoint for part in parts}
        beside = [other for other in others.values() if _same_layout(header, other)]
        shard = _ShardInFlight(header, shard_changes, beside, HashOrder(self._failed))
        for checkpoint in (base, *beside):
            path = checkpoint.path / header.shard
            if known_sha256(path) is None:
                shard.inputs[path] = (Sha256(), stamp(path))
        return shard

    def _work(self, tasks: Iterator[tuple[_Group, int]]) -> None:
        buffers = self._arithmetic.buffers()
        try:
            while not self._failed.is_set():
                with self._lock:
                    task = next(tasks, None)
                if task is None:
                    return
                group, number = task
                done = [
                    (shard.output, self._window(shard, number, buffers, lane))
                    for lane, shard in enumerate(group.shards)
                    if number * WINDOW < shard.header.size
                ]
                group.order.update(number, done)
        except BaseException:
            self._failed.set()  # the others may be waiting for this window's turn
            raise

    def _window(
        self, shard: _ShardInFlight, number: int, buffers: Buffers, lane: int
    ) -> memoryview:
        """Read, edit and write one window; its bytes, for the hash."""
        base, writer, header = self.stream.base, self.stream.writer, shard.header
        start = number * WINDOW
        stop = min(start + WINDOW, header.size)
        data = buffers.get(("base", lane), stop - start)
        base.read_shard_into(header.shard, start, data)
        finetuned: dict[int, memoryview] = {}
        for other in shard.beside:
            view = buffers.get(("beside", id(other)), stop - start)
            other.read_shard_into(header.shard, start, view)
            finetuned[id(other)] = view
        self._hash_inputs(shard, number, data, finetuned)
        inside = [e for e in header.entries if e.start < stop and e.stop > start]
        for change in shard.changes:
            if not (change.entry.start < stop and change.entry.stop > start):
                continue
            if change.entry.name in self._resumed:
                self._read_back(change.entry, start, data)
            else:
                total = self._edit(change, start, data, finetuned, buffers)
                # Windows count from the one a tensor begins in.
                place = number - change.entry.start // WINDOW
                self._tensors[change.entry.name].stats[place] = total
        writer.write_window(header.shard, start, data)
        self._finish(inside)
        self.stream.advance(self.stream.edit.name, len(data))
        return data

    def _hash_inputs(
        self,
        shard: _ShardInFlight,
        number: int,
        data: memoryview,
        finetuned: Mapping[int, memoryview],
    ) -> None:
        if not shard.inputs:
            return
        views = {self.stream.base.path / shard.header.shard: data}
        views |= {c.path / shard.header.shard: finetuned[id(c)] for c in shard.beside}
        pairs = [(digest, views[path]) for path, (digest, _) in shard.inputs.items()]
        shard.order.update(number, pairs)

    def _read_back(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        """The part of a tensor that an interrupted run wrote."""
        begin, end = max(entry.start, start), min(entry.stop, start + len(data))
        view = data[begin - start : end - start]
        self.stream.writer.read_window(entry.shard, begin, view)

    def _edit(
        self,
        change: DenseChange | OtherChange,
        start: int,
        data: memoryview,
        finetuned: Mapping[int, memoryview],
        buffers: Buffers,
    ) -> ChangeStats | None:
        """Add a tensor's change to the part of it that lies in a window; None if there is none."""
        if isinstance(change, DenseChange):
            return self._pieces.dense(change, start, data, finetuned, buffers)
        assert self._prefetch is not None
        prepared = self._prefetch.get(change.entry.name)
        if prepared is None:
            return None
        self._tensors[change.entry.name].facts = prepared.facts
        return self._pieces.other(change, prepared, start, data, buffers)

    def _finish(self, inside: Sequence[TensorEntry]) -> None:
        for entry in inside:
            tensor = self._tensors[entry.name]
            with self._lock:
                tensor.missing -= 1
                whole = tensor.missing == 0
            if whole and entry.name not in self._resumed:
                # The others are computed again as fast as they would be read back and checked.
                computed = entry.name in self._computed
                facts = self._facts(entry.name, tensor)
                self.stream.writer.finish(entry.name, facts, computed)
            if whole and self._prefetch is not None:
                self._prefetch.release(entry.name)

    def _facts(self, name: str, tensor: _Tensor) -> dict[str, Any]:
        window_stats = [stats for stats in tensor.stats if stats is not None]
        if not window_stats:
            return {}
        return merged(window_stats, self.stream.plan.edited[name], tensor.facts)


def merged(
    stats: Sequence[ChangeStats], factor: float, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The facts of a tensor's change, for the record.

    Args:
        stats: Of its windows, in the order of the bytes.
        factor: Of the selection.
        facts: Other facts.
    """
    total = ChangeStats()
    for window in stats:
        total.merge(window)
    return {"stats": asdict(total), "factor": factor, **(facts or {})}


def _same_layout(header: ShardHeader, other: Checkpoint) -> bool:
    other_header = other.shards.get(header.shard)
    if other_header is None or not other.as_stored:
        return False
    return other_header.size == header.size and other_header.entries == header.entries


def _windows_of(entry: TensorEntry) -> range:
    """Numbers of the windows that hold a part of a tensor."""
    if entry.stop == entry.start:
        return range(0)
    return range(entry.start // WINDOW, (entry.stop - 1) // WINDOW + 1)


def _groups(shards: Sequence[_ShardInFlight], failed: threading.Event) -> list[_Group]:
    """Shards in pairs where two are hashed at a time, the largest first."""
    ordered = sorted(shards, key=lambda shard: -shard.header.size)
    step = 2 if PAIRED else 1
    return [
        _Group(ordered[first : first + step], HashOrder(failed))
        for first in range(0, len(ordered), step)
    ]
