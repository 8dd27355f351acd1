"""Doing one task of an edit, in a process that may be on another machine.

What a process needs for all tasks of a run it opens once: the inputs, where they lie for everybody,
and the arithmetic with its memory. A task's bytes are on disk, or uploaded, before it ends, so that
a machine that is lost afterwards takes nothing with it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.digests import input_sha256
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.record import versions
from weightsurgery.checkpoint.staging import output_errors
from weightsurgery.errors import ClusterError, LostWorkError
from weightsurgery.surgery.arithmetic import OnHost, arithmetic_on
from weightsurgery.surgery.changes import DenseChange, OtherChange, Pieces
from weightsurgery.surgery.edit import Prepared
from weightsurgery.surgery.files import invisible
from weightsurgery.surgery.ordering import Prefetch
from weightsurgery.surgery.stream import Stream
from weightsurgery.surgery.tasks import Check, Done, Job, Part, Task
from weightsurgery.surgery.windows import WINDOW, merged
from weightsurgery.surgery.workers import torch_threads

__all__ = ["Performer", "performer"]

_BLOCK = 1 << 22

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
    job.sink.check()
    for each, size in job.inputs:
        if not each.is_file() or each.stat().st_size != size:
            raise invisible(each)


class Performer:
    """Does tasks of one run, one at a time.

    Args:
        job: The run.
        ahead: Works changes out before they are asked for; None to do so then.
    """

    def __init__(self, job: Job, ahead: Prefetch | None = None) -> None:
        self._job, self._ahead = job, ahead
        self._changes: dict[str, list[DenseChange | OtherChange]] = {}
        for change in (job.changes or {}).values():
            self._changes.setdefault(change.entry.shard, []).append(change)
        alone = any(isinstance(each, OtherChange) for each in (job.changes or {}).values())
        self._arithmetic = OnHost() if alone or job.changes is None else arithmetic_on(job.device)
        self._buffers = self._arithmetic.buffers()
        self._held: dict[str, Prepared | None] = {}

    def perform(self, work: Task | Check) -> Done | tuple[Path, str]:
        """Do a task; or hash a file, and give back its path and SHA-256.

        Raises:
            LostWorkError: The file of the output does not hold what was written there.
            WeightSurgeryError: As of an edit on one machine.
        """
        if isinstance(work, Check):
            return work.path, self._checked(work)
        (header,) = (each for each in self._job.plan.shards if each.shard == work.shard)
        with self._job.sink.part(work, header) as part:
            if self._job.changes is None:
                return self._by_blocks(work, part)
            return self._by_windows(work, part)

    def _stream(self, part: Part) -> Stream[Part]:
        job = self._job
        return Stream(job.edit, job.base, job.plan, job.storage, job.device, part, None, 0)

    def _by_blocks(self, task: Task, part: Part) -> Done:
        stream, raw = self._stream(part), part.header.raw
        if task.start < len(raw):
            part.put(task.start, raw[task.start : task.stop])
        with torch_threads(1):  # in each operation: its result would depend on their number
            for entry in part.header.entries:
                if entry.nbytes and task.start <= entry.start < task.stop:
                    stream.tensor(entry.name)
        return Done(task, facts=part.facts, **part.done())

    def _by_windows(self, task: Task, part: Part) -> Done:
        job, found, stream = self._job, list[tuple[str, int, ChangeStats]](), self._stream(part)
        pieces, facts = Pieces(job.edit, job.base, self._arithmetic), dict[str, Any]()
        changes = [c for c in self._changes.get(task.shard, ()) if _touches(c.entry, task)]
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
                else:
                    prepared = self._prepared(stream, change.entry.name)
                    if prepared is None:
                        continue
                    facts[change.entry.name] = prepared.facts
                    with torch_threads(1):
                        stats = pieces.other(change, prepared, start, data, self._buffers)
                found.append((change.entry.name, number, stats))
            part.put(start, data)
            self._release([c.entry.name for c in changes if c.entry.stop <= stop])
        if task.tensor is None:
            return Done(task, stats=found, facts=facts, **part.done())
        if task.tensor in facts:
            factor, stats_of = job.plan.edited[task.tensor], [stats for _, _, stats in found]
            facts = {task.tensor: merged(stats_of, factor, facts[task.tensor])}
        return Done(task, facts={task.tensor: {}, **facts}, **part.done())

    def _prepared(self, stream: Stream[Part], name: str) -> Prepared | None:
        """A change that has to be worked out; kept until all of its tensor is written."""
        if name not in self._held:
            if self._ahead is not None:
                self._held[name] = self._ahead.get(name)
            else:
                with torch_threads(1):
                    self._held[name] = stream.prepared(name)
        return self._held[name]

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            if self._held.pop(name, None) is not None and self._ahead is not None:
                self._ahead.release(name)

    def _checked(self, check: Check) -> str:
        if check.parts is None:
            return input_sha256(check.path)
        whole = hashlib.sha256()
        with output_errors(check.path), check.path.open("rb", buffering=0) as file:
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
