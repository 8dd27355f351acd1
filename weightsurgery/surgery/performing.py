"""Doing one task of an edit, in a process that may be on another machine.

What a process needs for all tasks of a run it opens once: the inputs, where they lie for everybody,
and the arithmetic with its memory. Its bytes are on disk before a task ends, so that a machine that
is lost afterwards takes nothing with it. Pages that it shares with its neighbours in the file are
written through at once (``O_DSYNC``): NFS would else write back whole ones that it has in memory,
over what another machine put there since.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import input_sha256, versions
from weightsurgery.checkpoint.staging import output_errors
from weightsurgery.checkpoint.writer import write_all
from weightsurgery.errors import ClusterError, LostWorkError
from weightsurgery.surgery.arithmetic import OnHost, arithmetic_on
from weightsurgery.surgery.changes import DenseChange, OtherChange, Pieces
from weightsurgery.surgery.stream import Stream
from weightsurgery.surgery.tasks import Check, Done, Job, Task
from weightsurgery.surgery.windows import WINDOW, merged
from weightsurgery.surgery.workers import torch_threads

__all__ = ["Performer", "performer"]

_BLOCK = 1 << 22

# At least a page of any machine.
_PAGE = 1 << 16

# This process's run: the last one it was given work of.
_known: dict[str, Performer] = {}


def performer(run: str, wanted: Mapping[str, str], fetch: Callable[[], bytes]) -> Performer:
    """What does a run's tasks in this process; made when the first of them comes.

    Args:
        run: What tells the run from others.
        wanted: Versions of the software on the machine that asks.
        fetch: Gets the packed :class:`Job`.

    Raises:
        ClusterError: Other versions are here, or the files are not.
    """
    if run not in _known:
        _check_versions(wanted)
        job: Job = pickle.loads(fetch())
        _check_files(job)
        _known.clear()
        _known[run] = Performer(job)
    return _known[run]


def _check_versions(wanted: Mapping[str, str]) -> None:
    here = versions()
    for name, version in wanted.items():
        if here.get(name) != version:
            raise ClusterError(
                f"node {socket.gethostname()}: {name} is {here.get(name)}, where the edit was"
                f" started it is {version}",
                "Install the same versions on all nodes, or their bytes would differ.",
            )


def _check_files(job: Job) -> None:
    """Refuse a machine on which the run's files are not those that were opened."""
    path, text = job.mark
    if _text(path) != text:
        raise _invisible(path.parent)
    for each, size in job.inputs:
        if not each.is_file() or each.stat().st_size != size:
            raise _invisible(each)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _invisible(path: Path) -> ClusterError:
    return ClusterError(
        f"{path}: not there on node {socket.gethostname()}, or not the same",
        "Keep inputs and output on storage that all nodes mount under the same path.",
    )


class Performer:
    """Does tasks of one run, one at a time.

    Args:
        job: The run.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._changes: dict[str, list[DenseChange | OtherChange]] = {}
        for change in (job.changes or {}).values():
            self._changes.setdefault(change.entry.shard, []).append(change)
        alone = any(isinstance(each, OtherChange) for each in (job.changes or {}).values())
        self._arithmetic = OnHost() if alone or job.changes is None else arithmetic_on(job.device)
        self._buffers = self._arithmetic.buffers()

    def perform(self, work: Task | Check) -> Done | tuple[Path, str]:
        """Do a task; or hash a file, and give back its path and SHA-256.

        Raises:
            LostWorkError: The file of the output does not hold what was written there.
            WeightSurgeryError: As of an edit on one machine.
        """
        if isinstance(work, Check):
            return work.path, self._checked(work)
        # One thread in each operation: its result would depend on their number.
        alone = work.tensor is not None
        threads: AbstractContextManager[None] = torch_threads(1) if alone else nullcontext()
        with threads, _Part(self._job, work) as part:
            if self._job.changes is None:
                return self._by_blocks(work, part)
            return self._by_windows(work, part)

    def _by_blocks(self, task: Task, part: _Part) -> Done:
        job = self._job
        assert task.tensor is not None
        stream = Stream(job.edit, job.base, job.plan, job.storage, job.device, part, None, 0)
        stream.tensor(task.tensor)
        return Done(task, part.digest.hexdigest(), facts=part.facts)

    def _by_windows(self, task: Task, part: _Part) -> Done:
        job, found = self._job, list[tuple[str, int, ChangeStats]]()
        pieces = Pieces(job.edit, job.base, self._arithmetic)
        changes = [c for c in self._changes.get(task.shard, ()) if _touches(c.entry, task)]
        stream = Stream(job.edit, job.base, job.plan, job.storage, job.device, part, None, 0)
        prepared = None if task.tensor is None else stream.prepared(task.tensor)
        for number in range(task.start // WINDOW, -(-task.stop // WINDOW)):
            start = max(task.start, number * WINDOW)
            stop = min(task.stop, (number + 1) * WINDOW)
            data = self._buffers.get("base", stop - start)
            job.base.read_shard_into(task.shard, start, data)
            for change in changes:
                if change.entry.start >= stop or change.entry.stop <= start:
                    continue
                if isinstance(change, DenseChange):
                    stats = pieces.dense(change, start, data, {}, self._buffers)
                elif prepared is not None:
                    stats = pieces.other(change, prepared, start, data, self._buffers)
                else:
                    continue
                found.append((change.entry.name, number, stats))
            part.put(start, data)
        sha256 = part.digest.hexdigest()
        if task.tensor is None:
            return Done(task, sha256, stats=found)
        if prepared is None:
            return Done(task, sha256, facts={})
        factor = job.plan.edited[task.tensor]
        facts = merged([stats for _, _, stats in found], factor, prepared.facts)
        return Done(task, sha256, facts=facts)

    def _checked(self, check: Check) -> str:
        if check.parts is None:
            return input_sha256(check.path)
        whole = hashlib.sha256()
        with output_errors(self._job.target), check.path.open("rb", buffering=0) as file:
            for start, stop, wanted in sorted(check.parts):
                _add(file, start - file.tell(), whole)  # what an earlier run wrote
                part = hashlib.sha256()
                _add(file, stop - start, whole, part)
                if part.hexdigest() != wanted:
                    raise LostWorkError(
                        f"{check.path}: bytes {start}-{stop}, read on node {socket.gethostname()},"
                        " are not those that were written",
                        "The shared storage loses or mixes writes: use another, or mount it"
                        " without caching; then run the same again.",
                    )
            _add(file, os.fstat(file.fileno()).st_size - file.tell(), whole)
        return whole.hexdigest()


def _touches(entry: TensorEntry, task: Task) -> bool:
    return entry.start < task.stop and entry.stop > task.start


def _add(file: IO[bytes], count: int, *digests: Any) -> None:
    """Read the next bytes of a file into digests; a shorter file ends early."""
    while count > 0 and (data := file.read(min(_BLOCK, count))):
        count -= len(data)
        for digest in digests:
            digest.update(data)


class _Part:
    """One task's bytes on their way into the unfinished output.

    Args:
        job: The run.
        task: What is written.

    Attributes:
        entries: The output's tensors, of the task's shard.
        digest: SHA-256 of what was written so far.
        facts: What was said of the tensor when it was finished.

    Raises:
        ClusterError: The file is not there.
    """

    def __init__(self, job: Job, task: Task) -> None:
        self._job, self._task = job, task
        (header,) = (each for each in job.plan.shards if each.shard == task.shard)
        self.entries = {entry.name: entry for entry in header.entries}
        self.digest = hashlib.sha256()
        self.facts: dict[str, Any] = {}
        path = job.paths[task.shard]
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(path, flags)
            self._edges = os.open(path, flags | os.O_DSYNC)
        except FileNotFoundError:
            raise _invisible(path) from None

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                with output_errors(self._job.target):
                    os.fdatasync(self._file)
        finally:
            os.close(self._file)
            os.close(self._edges)

    def put(self, offset: int, data: memoryview | bytes) -> None:
        """Write bytes at an offset of the file; they come in order."""
        if not self._task.start <= offset <= offset + len(data) <= self._task.stop:
            raise ValueError(f"bytes {offset}+{len(data)} outside {self._task}")
        view = memoryview(data)
        first = min(-offset % _PAGE, len(view))  # whole pages begin there
        last = max(first, len(view) - (offset + len(view)) % _PAGE)
        with output_errors(self._job.target):
            write_all(self._edges, view[:first], offset)
            write_all(self._file, view[first:last], offset + first)
            write_all(self._edges, view[last:], offset + last)
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
        self.facts = facts
