"""An edit whose output is uploaded in parts: by threads here, or by a cluster's tasks."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.digests import input_sha256, known_sha256
from weightsurgery.checkpoint.object_staging import ObjectStaging
from weightsurgery.surgery.changes import OtherChange, rewritten
from weightsurgery.surgery.cluster import Needs, RayCluster
from weightsurgery.surgery.objects import Objects, ObjectTask, object_tasks
from weightsurgery.surgery.on_cluster import needs_of
from weightsurgery.surgery.ordering import Prefetch
from weightsurgery.surgery.performing import Performer
from weightsurgery.surgery.plan import EditPlan, worker_count
from weightsurgery.surgery.stream import Stream
from weightsurgery.surgery.tasks import Check, Collected, Done, Job
from weightsurgery.surgery.workers import results, torch_threads

__all__ = ["ObjectWriter", "by_parts"]


class ObjectWriter:
    """What is known of an output's tensors while tasks upload them.

    Args:
        staging: Where the output grows.
        plan: Of the edit.

    Attributes:
        entries: The output's tensors.
        done: Facts of the tensors that are finished.
        resumed: How many of them an interrupted run had finished.
    """

    def __init__(self, staging: ObjectStaging, plan: EditPlan) -> None:
        self.staging = staging
        self.entries = {e.name: e for header in plan.shards for e in header.entries}
        self.done: dict[str, dict[str, Any]] = {}
        self.resumed = 0

    def finish(
        self, name: str, facts: dict[str, Any], resumable: bool = True, sha256: str | None = None
    ) -> None:
        """See :class:`weightsurgery.surgery.tasks.Finishing`."""
        self.done[name] = facts

    def abandon(self) -> None:
        """Nothing is open here."""


class _Chains(Iterator[ObjectTask]):
    """The tasks of all shards; gives those that can begin, and has others once they can.

    Args:
        job: The run.
        writer: The output's. What its journal knows is taken from there.

    Attributes:
        begin: The tasks with which the shards go on, the longest first.
        shas: SHA-256 of the shards that are whole, by name.
        left: Bytes that are to be written.
    """

    def __init__(self, job: Job, writer: ObjectWriter) -> None:
        self._staging, self._collected = writer.staging, Collected(job, writer)
        self._lock = threading.Lock()
        self.shas: dict[str, str] = {}
        self._rest = {h.shard: deque(object_tasks(job, h)) for h in job.plan.shards}
        lines = {(e["shard"], e["start"], e["stop"]): e for e in writer.staging.finished}
        begin: list[ObjectTask] = []
        for shard, rest in self._rest.items():
            following: ObjectTask | None = rest.popleft()
            while following and (line := lines.get((shard, following.start, following.stop))):
                following = self._add(_read(following, line), line, new=False)
            if following is not None:
                begin.append(following)
        self.left = sum(t.stop - t.start for t in begin)
        self.left += sum(t.stop - t.start for rest in self._rest.values() for t in rest)
        sizes = {header.shard: header.size for header in job.plan.shards}
        self.begin = sorted(begin, key=lambda task: task.start - sizes[task.shard])
        self._ready = deque(self.begin)
        writer.resumed = sum(1 for name in writer.done if writer.entries[name].nbytes)

    @override
    def __next__(self) -> ObjectTask:
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def ready(self, task: ObjectTask | None) -> None:
        """Give a task to whoever asks next."""
        self._ready += [] if task is None else [task]

    def add(self, done: Done) -> ObjectTask | None:
        """Take what came back of a task; the one after it, if there is one."""
        with self._lock:
            return self._add(done, _line(done), new=True)

    def _add(self, done: Done, line: Mapping[str, Any], new: bool) -> ObjectTask | None:
        self._staging.take(line, new)
        self._collected.add(done)
        rest = self._rest[done.task.shard]
        if rest:
            return replace(rest.popleft(), state=done.state)
        self.shas[done.task.shard] = done.sha256
        return None


def _line(done: Done) -> dict[str, Any]:
    """A task that was done, for the journal."""
    return {
        "shard": done.task.shard,
        "start": done.task.start,
        "stop": done.task.stop,
        "parts": done.parts,
        "state": done.state,
        "sha256": done.sha256,
        "stats": [(name, window, asdict(stats)) for name, window, stats in done.stats],
        "facts": done.facts,
    }


def _read(task: ObjectTask, line: Mapping[str, Any]) -> Done:
    """The same from the journal."""
    stats = [(name, window, ChangeStats(**sums)) for name, window, sums in line["stats"]]
    return Done(task, line["sha256"], stats, line["facts"], line["parts"], line["state"])


def by_parts(
    stream: Stream[Any], read: Sequence[Path], workers: int | None, cluster: RayCluster | None
) -> tuple[dict[Path, str], dict[str, str]]:
    """Do all tensors, and upload them.

    Args:
        stream: The run; its writer is an :class:`ObjectWriter`.
        read: All inputs.
        workers: Threads, or the most tasks under way on a cluster; None for the default.
        cluster: Where; None for this machine.

    Returns:
        Digests of the inputs and of the output's shards.

    Raises:
        ClusterError: See :meth:`RayCluster.results`.
        OutputError: The store does not answer, or refuses.
        WeightSurgeryError: As of an edit whose output is a directory.
    """
    staging = stream.writer.staging
    job = Job(
        stream.edit,
        stream.base,
        stream.plan,
        stream.storage,
        stream.device,
        rewritten(stream.edit, stream.base, stream.plan, stream.storage),
        Objects(staging.place, staging.uploads),
        [(path, path.stat().st_size) for path in read],
    )
    chains = _Chains(job, stream.writer)
    known = {path: digest for path in read if (digest := known_sha256(path)) is not None}
    stream.total = chains.left + sum(size for path, size in job.inputs if path not in known)
    unknown = [path for path in read if path not in known]
    if cluster is None:
        hashed = _here(job, stream, chains, unknown, worker_count(stream.edit, workers))
    else:
        hashed = _there(job, stream, chains, unknown, workers, cluster)
    return {**known, **hashed}, chains.shas


def _here(
    job: Job, stream: Stream[Any], chains: _Chains, unknown: Sequence[Path], workers: int
) -> dict[Path, str]:
    """All by threads; SHA-256 of the inputs that are not known yet."""
    failed = threading.Event()
    later = list(_worked_out(job, chains.begin))
    # Changes are worked out side by side, and added one shard after another: few wait then.
    ahead = Prefetch(stream.prepared, later, workers) if later else None
    threads = 1 if ahead is not None else workers

    def work(_: int) -> None:
        performer = Performer(job, ahead)
        while (task := next(chains, None)) is not None:
            while task is not None and not failed.is_set():
                done = performer.perform(task)
                assert isinstance(done, Done)
                task = chains.add(done)
                stream.advance(stream.edit.name, done.task.stop - done.task.start)

    def sha(path: Path) -> str:
        digest = input_sha256(path)
        stream.advance("checksums", path.stat().st_size)
        return digest

    torch = later or job.changes is None
    with torch_threads(1) if torch else nullcontext(), ThreadPoolExecutor(threads + 1) as pool:
        try:
            working = [pool.submit(work, number) for number in range(threads)]
            hashing = [pool.submit(sha, path) for path in unknown]
            results([*working, *hashing])
            return dict(zip(unknown, results(hashing), strict=True))
        except BaseException:
            failed.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            if ahead is not None:
                ahead.close()


def _worked_out(job: Job, begin: Sequence[ObjectTask]) -> Iterator[str]:
    """The tensors whose change has to be worked out, in the order of the work."""
    headers = {header.shard: header for header in job.plan.shards}
    for task in begin:
        for entry in headers[task.shard].entries:
            change = (job.changes or {}).get(entry.name)
            if isinstance(change, OtherChange) and entry.start >= task.start:
                yield entry.name


def _there(
    job: Job,
    stream: Stream[Any],
    chains: _Chains,
    unknown: Sequence[Path],
    workers: int | None,
    cluster: RayCluster,
) -> dict[Path, str]:
    """The same by a cluster's tasks."""
    run, packed = secrets.token_hex(16), job.packed()
    with closing(cluster.results(run, packed, chains, needs_of(stream), workers)) as found:
        for done in found:
            chains.ready(chains.add(done))
            stream.advance(stream.edit.name, done.task.stop - done.task.start)
    hashed: dict[Path, str] = {}
    checks = [Check(path) for path in unknown]
    with closing(cluster.results(run, packed, checks, lambda _: Needs(), workers)) as found:
        for path, digest in found:
            hashed[path] = digest
            stream.advance("checksums", path.stat().st_size)
    return hashed
