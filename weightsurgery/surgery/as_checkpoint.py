"""An edit written as a checkpoint: check, plan, stream, record.

A tensor is one task: it is copied as bytes, or its change is computed and added in row blocks of
a few megabytes. Threads take the largest tensors first. A tensor is freed once it is written, so
memory does not grow with the model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.digests import file_sha256, input_sha256
from weightsurgery.checkpoint.header import ARITHMETIC_DTYPES, TensorEntry
from weightsurgery.checkpoint.object_staging import ObjectStaging
from weightsurgery.checkpoint.object_store import ObjectPlace
from weightsurgery.checkpoint.plain_files import need_space, write_whole
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.staging import RECORD_NAME, Staging, output_errors
from weightsurgery.checkpoint.writer import CheckpointWriter, free_space_needed
from weightsurgery.errors import EditError
from weightsurgery.suggestions import one_of
from weightsurgery.surgery import objects
from weightsurgery.surgery.by_parts import ObjectWriter, by_parts
from weightsurgery.surgery.cluster import RayCluster
from weightsurgery.surgery.companions import companion_notices, companions_of, copy_companions
from weightsurgery.surgery.edit import Applied, Edit, Run, task_of
from weightsurgery.surgery.notices import edit_notices
from weightsurgery.surgery.on_cluster import by_cluster
from weightsurgery.surgery.plan import EditPlan, plan_checkpoint, worker_count
from weightsurgery.surgery.provenance import (
    Input,
    files,
    folders,
    identity_of,
    inputs_of_edit,
    lineage_of_edit,
    recorded,
)
from weightsurgery.surgery.selected import selected_share
from weightsurgery.surgery.stream import Stream
from weightsurgery.surgery.windows import Windows
from weightsurgery.surgery.workers import device_for, results, torch_threads

__all__ = ["Storage", "parent_of"]


_STORED_AS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Storage:
    """How results are stored.

    Attributes:
        dtype: ``float64``, ``float32``, ``float16`` or ``bfloat16`` for all floating tensors;
            None keeps the tensors' dtypes.
        rounding: ``"nearest"`` or ``"stochastic"``.
        seed: Of stochastic rounding.
        code: Whether to copy Python files that the base's config names: whoever loads the output
            may run them.
    """

    dtype: str | None = None
    rounding: str = "nearest"
    seed: int = 0
    code: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in _STORED_AS:
            raise EditError(f"dtype {self.dtype!r}", one_of(self.dtype, _STORED_AS))
        if self.rounding not in ("nearest", "stochastic"):
            raise EditError(f"rounding {self.rounding!r}", "Choose nearest or stochastic.")

    def stored(self, entry: TensorEntry) -> str:
        """The safetensors dtype a tensor gets."""
        if self.dtype is None or entry.dtype not in ARITHMETIC_DTYPES:
            return entry.dtype
        return _STORED_AS[self.dtype]

    def plan(self, edit: Edit, base: Checkpoint, out: str | os.PathLike[str], run: Run) -> EditPlan:
        """What writing the edited checkpoint reads, writes and holds.

        Raises:
            WeightSurgeryError: See :func:`weightsurgery.surgery.plan.plan_checkpoint`.
        """
        return plan_checkpoint(edit, base, out, self, run)

    def write(self, edit: Edit, base: Checkpoint, out: str | os.PathLike[str], run: Run) -> Applied:
        """Write the edited checkpoint, all or nothing.

        Output shards mirror the base's: same files, names, order, dtypes, metadata and index;
        tensors that do not change are byte-identical. A killed run continues when it is called
        again with the same arguments, and writes the same bytes as an uninterrupted one.

        Raises:
            WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is left of the output then.
        """
        return _write(edit, base, out, self, run)


def _write(
    edit: Edit, base: Checkpoint, out: str | os.PathLike[str], storage: Storage, run: Run
) -> Applied:
    plan = storage.plan(edit, base, out, run)
    companions_of(base, storage)  # errors there are raised before the work, not after
    with nullcontext() if run.cluster is None else RayCluster(run.cluster) as cluster:
        return _write_planned(edit, base, out, storage, run, plan, cluster)


def _write_planned(
    edit: Edit,
    base: Checkpoint,
    out: str | os.PathLike[str],
    storage: Storage,
    run: Run,
    plan: EditPlan,
    cluster: RayCluster | None,
) -> Applied:
    if cluster is None:
        torch_device = device_for(run.device, decomposes=edit.factors)
    else:
        torch_device = cluster.device(run.device, decomposes=edit.factors)
    place = ObjectPlace.of(out)
    inputs, lineage = inputs_of_edit(edit, base), lineage_of_edit(edit, base, run)
    identity = identity_of(
        inputs,
        edit=edit.name,
        parameters=edit.parameters(),
        selection=asdict(run.selection),
        storage=asdict(storage),
        device=torch_device.split(":")[0],
        **({} if place is None else {"parts": [objects.PART, objects.TASK]}),
    )
    staging = (
        Staging(Path(os.path.realpath(out)), identity, folders(inputs), run.overwrite)
        if place is None
        else ObjectStaging(place, identity, list(base.shards), run.overwrite)
    )
    if staging.complete:
        return Applied(staging.record(), ("An earlier run had finished this output.",))
    writer = None
    try:
        writer = _writer(staging, plan)
        stream = Stream[Any](edit, base, plan, storage, torch_device, writer, run.progress, total=0)
        record = EditRecord(
            "checkpoint",
            command=list(run.command),
            parameters={
                "edit": edit.name,
                **edit.parameters(),
                "selection": asdict(run.selection),
                "storage": asdict(storage),
                "device": torch_device.split(":")[0],
                "allow_unrelated": run.allow_unrelated,
            },
            lineage=lineage,
            parent=parent_of(base),
        )
        _run(stream, inputs, record, run.workers, cluster)
        selected = selected_share(base, task_of(edit), plan.edited, plan.copies)
        record.summary = {**record.summary, "selected": selected}
        _finish(staging, base, storage, record)
    except BaseException as error:
        if writer is not None:
            writer.abandon()
        (staging.leave if isinstance(error, staging.kept_after) else staging.close)()
        raise
    notices = (*edit_notices(record), *companion_notices(base, storage))
    return Applied(record, notices, writer.resumed)


def _writer(staging: Staging, plan: EditPlan) -> CheckpointWriter | ObjectWriter:
    """What is told of the output's tensors."""
    if isinstance(staging, ObjectStaging):
        return ObjectWriter(staging, plan)
    need_space(staging.target, free_space_needed(plan.shards, staging.files), staging.root)
    return CheckpointWriter(staging, plan.shards)


def parent_of(base: Checkpoint) -> dict[str, str] | None:
    """The base's own record, where the base is an output of this tool."""
    path = base.path / RECORD_NAME
    if not path.is_file():
        return None
    return {"name": base.source.name, "record_sha256": file_sha256(path)}


def _run(
    stream: Stream[Any],
    inputs: Mapping[str, Input],
    record: EditRecord,
    workers: int | None,
    cluster: RayCluster | None,
) -> None:
    """Do all tensors, hash all files, and complete the record."""
    read, count = files(inputs), worker_count(stream.edit, workers)
    if isinstance(stream.writer, ObjectWriter):
        digests, shas = by_parts(stream, read, workers, cluster)
    elif cluster is not None:
        digests, shas = by_cluster(cluster, stream, read, workers)
    elif (windows := Windows.of(stream)) is not None:
        digests, shas = _by_window(windows, read, count)
    else:
        digests, shas = _by_tensor(stream, read, count)
    record.files = {
        header.shard: {"sha256": shas[header.shard], "bytes": header.size}
        for header in stream.plan.shards
    }
    record.inputs = recorded(inputs, digests)
    facts = stream.writer.done
    record.tensors, record.summary = _statistics(stream.edit, stream.base, stream.plan, facts)


def _by_window(
    windows: Windows, read: Sequence[Path], workers: int
) -> tuple[dict[Path, str], dict[str, str]]:
    """Digests of the inputs and of the output's shards, mostly taken while writing."""
    stream = windows.stream
    stream.total = stream.plan.write_bytes
    windows.run(workers)
    stream.writer.seal()
    rest = [path for path in read if path not in windows.inputs]
    with ThreadPoolExecutor(workers, "ws") as pool:
        digests = dict(zip(rest, pool.map(input_sha256, rest), strict=True))
    return {**windows.inputs, **digests}, windows.outputs


def _by_tensor(
    stream: Stream[CheckpointWriter], read: Sequence[Path], workers: int
) -> tuple[dict[Path, str], dict[str, str]]:
    """Digests of the inputs and of the output's shards, taken when the tensors are done."""
    base, writer = stream.base, stream.writer
    todo = [name for name in base.entries if name not in writer.done]
    todo.sort(key=lambda name: -base.entry(name).nbytes)
    written = {header.shard: writer.staging.files / header.shard for header in stream.plan.shards}
    stream.total = sum(base.entry(name).nbytes for name in todo)
    stream.total += sum(path.stat().st_size for path in read) + stream.plan.write_bytes

    def sha(path: Path, read: bool = False) -> str:
        digest = input_sha256(path) if read else file_sha256(path)
        stream.advance("checksums", path.stat().st_size)
        return digest

    # One thread per operation: its result would depend on their number.
    with torch_threads(1), ThreadPoolExecutor(workers, "ws") as pool:
        try:
            results([pool.submit(stream.tensor, name) for name in todo])
            reading = [pool.submit(sha, path, read=True) for path in read]
            writer.seal()
            writing = [pool.submit(sha, path) for path in written.values()]
            digests = dict(zip(read, results(reading), strict=True))
            shard_digests = dict(zip(written, results(writing), strict=True))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return digests, shard_digests


def _statistics(
    edit: Edit, base: Checkpoint, plan: EditPlan, done: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Per-tensor and overall statistics from the journal's facts.

    Raises:
        EditError: The written change is not the intended one.
    """
    total = ChangeStats()
    tensors: dict[str, Any] = {}
    untouched = 0
    for name in base.entries:
        facts = dict(done[name])
        sums = facts.pop("stats", None)
        if sums is None:
            untouched += 1
            continue
        stats = ChangeStats(**sums)
        total.merge(stats)
        tensors[name] = {**_describe(stats), **facts}
    summary = {
        **_describe(total),
        "tensors": len(base.entries),
        "edited": len(tensors),
        "copied": untouched,
        "selected_without_change": sorted(set(plan.edited) - set(tensors)),
    }
    if total.meant > 0 and total.moved == 0:
        raise EditError(
            f"{edit.name}: the whole change ({total.meant**0.5:.2g} in norm) vanished in rounding",
            "Use --rounding stochastic, --dtype float32 or a larger --scale.",
        )
    if total.meant > 0 and not total.agreement > 0:
        raise EditError(
            f"{edit.name}: the written change points away from the intended one"
            f" (edit check {total.agreement:.3f})",
            "Use --dtype float32; if that fails too, report a bug in weightsurgery.",
        )
    return tensors, summary


def _describe(stats: ChangeStats) -> dict[str, float]:
    values = {
        "relative_change": stats.relative,
        "surviving_fraction": stats.surviving,
        "edit_check": stats.agreement,
        "rounding_loss": stats.lost,
    }
    return {key: float(f"{value:.6g}") for key, value in values.items()}


def _finish(staging: Staging, base: Checkpoint, storage: Storage, record: EditRecord) -> None:
    """Copy what belongs to the model, write the record, and put the output in its place."""
    record.files = {**record.files, **copy_companions(base, storage, staging)}
    with output_errors(staging.target):
        write_whole(staging.files / RECORD_NAME, record.to_json())
    staging.commit([*record.files, RECORD_NAME])
