"""An edit's plan as tasks that know nothing of each other, for processes on other machines.

A task owns a range of bytes of one file of the unfinished output: a stretch in which tensors change
as they lie, or one tensor whose change has to be worked out first. What it writes depends on its
place alone, so doing it twice, or in part before, does no harm; what comes back are sums and a
SHA-256. The sums are those of the windows a run on one machine counts in, so the record agrees.
"""

from __future__ import annotations

import io
import pickle
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.hashing import Sha256
from weightsurgery.checkpoint.layout import ShardHeader, TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import EditError
from weightsurgery.surgery.changes import DenseChange, OtherChange
from weightsurgery.surgery.edit import Edit
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.surgery.windows import WINDOW, merged

if TYPE_CHECKING:
    from weightsurgery.surgery.as_checkpoint import Storage

__all__ = ["Check", "Collected", "Done", "Finishing", "Job", "Part", "Sink", "Task", "tasks_of"]

_BLOCK = 1 << 22

# Bytes of a task whose tensors change as they lie: long enough that starting it costs little.
RANGE = 32 * WINDOW


@dataclass(frozen=True)
class Job:
    """What all tasks of a run share.

    Attributes:
        edit: What to do.
        base: The checkpoint to edit.
        plan: Which tensors, and the output's headers.
        storage: dtype and rounding of the result.
        device: Where matrices are decomposed.
        changes: What is done to which tensor as it lies; None to go tensor by tensor.
        sink: Where the output's bytes go.
        inputs: Files that are read, and their sizes.
    """

    edit: Edit
    base: Checkpoint
    plan: EditPlan
    storage: Storage
    device: str
    changes: Mapping[str, DenseChange | OtherChange] | None
    sink: Sink
    inputs: Sequence[tuple[Path, int]]

    def alone(self, name: str) -> bool:
        """Whether a tensor is a task of its own."""
        return self.changes is None or isinstance(self.changes.get(name), OtherChange)

    def packed(self) -> bytes:
        """As bytes for another process, in which there are no weights.

        Raises:
            EditError: A vector is in memory, where no other machine can read it.
        """
        packed = io.BytesIO()
        _Pickler(packed).dump(self)
        return packed.getvalue()


class _Pickler(pickle.Pickler):
    def persistent_id(self, each: Any) -> None:
        if type(each).__module__.startswith("torch") and hasattr(each, "untyped_storage"):
            raise EditError(
                "a vector in memory, on a cluster: its nodes read vectors from storage they share",
                "Save it first, as 'ws diff -o' and 'ws subspace' do, or edit on this machine.",
            )


class Sink(Protocol):
    """Where the output's bytes go: files (:mod:`weightsurgery.surgery.files`) or objects."""

    @property
    def target(self) -> object:
        """The output, for messages."""
        ...

    def check(self) -> None:
        """Refuse a machine that does not see the output."""
        ...

    def part(self, task: Task, header: ShardHeader) -> AbstractContextManager[Part]:
        """Open what a task writes."""
        ...


@dataclass(frozen=True)
class Task:
    """A range of bytes of a shard of the output.

    Attributes:
        shard: Its file.
        start: First byte.
        stop: After the last byte.
        tensor: The one tensor that it is; None for a stretch of the file.
    """

    shard: str
    start: int
    stop: int
    tensor: str | None = None

    @property
    def decomposes(self) -> bool:
        """Whether a tensor's change may have to be worked out."""
        return self.tensor is not None


class Part:
    """One task's bytes on their way into the unfinished output.

    Args:
        task: What is written.
        header: Of the output's shard.

    Attributes:
        entries: The output's tensors, of the task's shard.
        digest: SHA-256 of what was written so far.
        facts: What was said of tensors when they were finished, by name.
    """

    digest: Sha256

    def __init__(self, task: Task, header: ShardHeader) -> None:
        self.task, self.header = task, header
        self.entries = {entry.name: entry for entry in header.entries}
        self.facts: dict[str, dict[str, Any]] = {}

    def store(self, offset: int, data: memoryview) -> None:
        """Take bytes for an offset of the file; they come in order."""
        raise NotImplementedError

    def put(self, offset: int, data: memoryview | bytes) -> None:
        """Write bytes at an offset of the file; they come in order."""
        if not self.task.start <= offset <= offset + len(data) <= self.task.stop:
            raise ValueError(f"bytes {offset}+{len(data)} outside {self.task}")
        self.store(offset, memoryview(data))
        self.digest.update(data)

    def write(self, name: str, offset: int, data: memoryview | bytes) -> None:
        """See :class:`weightsurgery.surgery.stream.TensorWriter`."""
        self.put(self.entries[name].start + offset, data)

    def copy(self, name: str, base: Checkpoint) -> None:
        """See :class:`weightsurgery.surgery.stream.TensorWriter`."""
        size = base.entry(name).nbytes
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            self.write(name, start, memoryview(base.read_bytes(name, start, stop)))

    def finish(self, name: str, facts: dict[str, Any]) -> None:
        """See :class:`weightsurgery.surgery.stream.TensorWriter`."""
        self.facts[name] = facts

    def done(self) -> dict[str, Any]:
        """What comes back once all is written: fields of :class:`Done`."""
        return {"sha256": self.digest.hexdigest()}


@dataclass(frozen=True)
class Done:
    """What comes back of a task.

    Attributes:
        task: The task.
        sha256: Of the bytes that were written.
        stats: Of windows: tensor, number of the window, and its sums.
        facts: By tensor: what else is known of its change; of a task that is one tensor, or goes
            tensor by tensor, all.
        parts: Of objects: number, ETag and size of what was uploaded.
        state: Of objects: of the shard's hash so far.
    """

    task: Task
    sha256: str
    stats: Sequence[tuple[str, int, ChangeStats]] = ()
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Sequence[tuple[int, str, int]] = ()
    state: str = ""


@dataclass(frozen=True)
class Check:
    """A file to be hashed.

    Attributes:
        path: The file.
        parts: Of one of the output: first byte, end and SHA-256 of what tasks wrote. None for an
            input.
    """

    path: Path
    parts: Sequence[tuple[int, int, str]] | None = None


def tasks_of(job: Job, done: Container[str]) -> list[Task]:
    """All that is to be done, the largest first.

    Args:
        job: The run.
        done: Tensors that an interrupted run has finished.
    """
    found: list[Task] = []
    for header in job.plan.shards:
        at = 0
        for entry in header.entries:
            if not entry.nbytes or not job.alone(entry.name):
                continue
            found += _stretches(job, header.shard, at, entry.start)
            at = entry.stop
            if entry.name not in done:
                found.append(Task(header.shard, entry.start, entry.stop, entry.name))
        found += _stretches(job, header.shard, at, header.size)
    return sorted(found, key=lambda task: task.start - task.stop)


def _stretches(job: Job, shard: str, start: int, stop: int) -> Iterator[Task]:
    """A stretch, cut where windows begin."""
    while start < stop and job.changes is not None:  # else it is a header, which is written
        end = min(stop, (start // RANGE + 1) * RANGE)
        yield Task(shard, start, end)
        start = end


class Finishing(Protocol):
    """Whom :class:`Collected` tells of finished tensors."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The output's tensors."""
        ...

    @property
    def done(self) -> Mapping[str, Mapping[str, Any]]:
        """Facts of the tensors that an interrupted run has finished."""
        ...

    def finish(
        self, name: str, facts: dict[str, Any], resumable: bool = True, sha256: str | None = None
    ) -> None:
        """Mark a tensor as finished."""
        ...


class Collected:
    """What has come back; tells the writer of a tensor once all of it is written.

    Args:
        job: The run.
        writer: The output's.

    Attributes:
        parts: By shard: first byte, end and SHA-256 of what was written.
    """

    def __init__(self, job: Job, writer: Finishing) -> None:
        self._job, self._writer = job, writer
        self._headers = {header.shard: header for header in job.plan.shards}
        self._starts = {s: [e.start for e in h.entries] for s, h in self._headers.items()}
        self._left = {entry.name: entry.nbytes for entry in writer.entries.values()}
        self._sums: dict[str, dict[int, ChangeStats]] = {}
        self._known: dict[str, Mapping[str, Any]] = {}
        self.parts: dict[str, list[tuple[int, int, str]]] = {shard: [] for shard in self._headers}
        for name, size in self._left.items():
            if not size and name not in writer.done:
                writer.finish(name, {}, resumable=False)

    def add(self, done: Done) -> None:
        """Take what came back of a task."""
        task = done.task
        self.parts[task.shard].append((task.start, task.stop, done.sha256))
        if task.tensor is not None:
            self._writer.finish(task.tensor, dict(done.facts[task.tensor]), sha256=done.sha256)
            return
        self._known.update(done.facts)
        for name, window, stats in done.stats:
            self._sums.setdefault(name, {})[window] = stats
        for entry in self._inside(task):
            self._left[entry.name] -= min(entry.stop, task.stop) - max(entry.start, task.start)
            if not self._left[entry.name]:
                self._writer.finish(entry.name, self._facts(entry.name), resumable=False)

    def _inside(self, task: Task) -> Iterator[TensorEntry]:
        entries = self._headers[task.shard].entries
        first = max(0, bisect_right(self._starts[task.shard], task.start) - 1)
        for entry in entries[first:]:
            if entry.start >= task.stop:
                return
            if entry.stop > task.start and entry.nbytes:
                yield entry

    def _facts(self, name: str) -> dict[str, Any]:
        sums, known = self._sums.pop(name, None), self._known.pop(name, {})
        if sums is None:
            return dict(known) if self._job.changes is None else {}
        return merged([sums[each] for each in sorted(sums)], self._job.plan.edited[name], known)
