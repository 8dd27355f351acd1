"""An edit whose tasks a cluster does: what is sent, what comes back, and in which order."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.digests import known_sha256
from weightsurgery.checkpoint.plain_files import write_whole
from weightsurgery.checkpoint.staging import output_errors
from weightsurgery.checkpoint.writer import CheckpointWriter
from weightsurgery.surgery.changes import rewritten
from weightsurgery.surgery.cluster import Needs, RayCluster
from weightsurgery.surgery.files import Files
from weightsurgery.surgery.plan import worker_count
from weightsurgery.surgery.stream import Stream
from weightsurgery.surgery.tasks import Check, Collected, Job, Task, tasks_of

__all__ = ["by_cluster", "needs_of"]

_MARK = "cluster.run"


def by_cluster(
    cluster: RayCluster,
    stream: Stream[CheckpointWriter],
    read: Sequence[Path],
    workers: int | None,
) -> tuple[dict[Path, str], dict[str, str]]:
    """Do all tensors on a cluster.

    Args:
        cluster: Where.
        stream: The run.
        read: All inputs.
        workers: The most tasks under way; None for as many as the cluster has use for.

    Returns:
        Digests of the inputs and of the output's shards.

    Raises:
        ClusterError: See :meth:`RayCluster.results`.
        WeightSurgeryError: As of an edit on one machine.
    """
    writer = stream.writer
    staging = writer.staging
    run = secrets.token_hex(16)
    mark = staging.root / _MARK
    with output_errors(staging.target):
        write_whole(mark, run)
    paths = {header.shard: writer.path(header.shard) for header in stream.plan.shards}
    changes = rewritten(stream.edit, stream.base, stream.plan, stream.storage)
    job = Job(
        stream.edit,
        stream.base,
        stream.plan,
        stream.storage,
        stream.device,
        changes,
        Files(staging.target, paths, (mark, run)),
        [(path, path.stat().st_size) for path in read],
    )
    packed = job.packed()
    tasks = tasks_of(job, writer.done)
    known = {path: digest for path in read if (digest := known_sha256(path)) is not None}
    stream.total = sum(task.stop - task.start for task in tasks) + stream.plan.write_bytes
    stream.total += sum(size for path, size in job.inputs if path not in known)
    collected = Collected(job, writer)
    with closing(cluster.results(run, packed, tasks, needs_of(stream), workers)) as found:
        for done in found:
            collected.add(done)
            stream.advance(stream.edit.name, done.task.stop - done.task.start)
    written = {s: Check(paths[s], tuple(parts)) for s, parts in collected.parts.items()}
    checks = [*written.values(), *(Check(path) for path in read if path not in known)]
    hashed: dict[Path, str] = {}
    with closing(cluster.results(run, packed, checks, lambda _: Needs(), workers)) as found:
        for path, digest in found:
            hashed[path] = digest
            stream.advance("checksums", path.stat().st_size)
    writer.seal()
    digests = {path: known.get(path) or hashed[path] for path in read}
    return digests, {shard: hashed[check.path] for shard, check in written.items()}


def needs_of(stream: Stream[Any]) -> Callable[[Task], Needs]:
    """A GPU and memory for what is worked out; for the rest a GPU only where one was asked for."""
    edit, gpu = stream.edit, stream.device != "cpu"
    memory = stream.plan.memory_bytes // worker_count(edit, None) if edit.factors else 0

    def needs(task: Task) -> Needs:
        if not task.decomposes:
            return Needs(gpu and not edit.factors)
        return Needs(gpu, memory)

    return needs
