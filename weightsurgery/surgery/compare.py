"""Describing a change without applying it: its size and rank, tensor by tensor; and saving it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsurgery.algebra.lowrank import LowRank, RankRule, participation_of, rank_by
from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.algebra.svd import Truncation, truncated_svd
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, read_record
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.progress import Progress
from weightsurgery.surgery.diff_plan import compared, diff_workers
from weightsurgery.surgery.difference import TensorDifference, borrowed, difference, empty
from weightsurgery.surgery.provenance import folders, hash_files, identity_of, inputs_of, recorded
from weightsurgery.surgery.workers import device_for, in_order, torch_threads
from weightsurgery.vectors.finetuned import FinetunedChange, refuse_quantised
from weightsurgery.vectors.lineage import Kinship, kinship, samples_of
from weightsurgery.vectors.saved import VectorWriter
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["Comparison", "diff"]


@dataclass(frozen=True)
class Comparison:
    """The differences of all selected tensors.

    Attributes:
        tensors: Of the tensors that the vector covers, in the base's order.
        norm: ``‖T‖`` over all of them.
        relative: ``‖T‖ / ‖W‖`` over all of them.
        lineage: Whether the vector's terms derive from the base.
        saved: The record of the saved vector, if it was saved.
        fetched: Bytes of weight files that came over the network, headers included.
    """

    tensors: tuple[TensorDifference, ...]
    norm: float
    relative: float
    lineage: tuple[Kinship, ...]
    saved: EditRecord | None = None
    fetched: int = 0


def diff(
    base: Checkpoint,
    vector: TaskVector,
    *,
    selection: Selection | None = None,
    rule: RankRule | None = None,
    save_to: str | os.PathLike[str] | None = None,
    matrices_only: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    workers: int | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    spectra: dict[str, list[float]] | None = None,
) -> Comparison:
    """Describe a change of a base tensor by tensor, and save it if ``save_to`` is given.

    Args:
        base: The base.
        vector: The change.
        selection: Which tensors; by default all.
        rule: Decompose matrices, keeping this many factors.
        save_to: Directory for the task vector: matrices as factors if there is a ``rule``, the
            rest as float32 differences.
        matrices_only: Leave out what is no matrix (``ws subspace``).
        overwrite: Replace an existing output of this tool.
        device: Where matrices are decomposed.
        workers: Threads.
        seed: Of the randomised SVD.
        command: The command line, for the record.
        progress: Called as ``progress(stage, done, total)`` in bytes.
        spectra: Filled with the singular values of decomposed matrices, by name.

    Raises:
        WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is saved then.
    """
    refuse_quantised(base)
    selection = selection or Selection()
    torch_device = device_for(device, decomposes=rule is not None)
    entries = compared(base, selection, matrices_only)

    def compare(entry: TensorEntry) -> tuple[TensorDifference, Any, ChangeStats] | None:
        delta = vector.at(entry.name)
        if delta is None:
            return None
        if rule is None or len(entry.shape) != 2 or entry.numel == 0:
            dense = empty(entry) if save_to is not None else None
            row, stats = difference(base, entry, delta, dense)
            change = None if dense is None else torch.from_numpy(dense).reshape(entry.shape)
            return row, change, stats
        exact = delta.factors()
        # Factors are never multiplied out; a matrix lies in memory that the thread reuses.
        dense_matrix = borrowed(entry) if exact is None else None
        row, stats = difference(base, entry, delta, dense_matrix, sketched=False)
        if exact is not None:
            rank = rank_by(exact.S, exact.energy, rule)
            truncation = Truncation(
                exact.truncated(rank), exact.energy, 0.0, participation_of(exact.S)
            )
        else:
            matrix = torch.from_numpy(dense_matrix).to(torch_device)
            truncation = truncated_svd(matrix, rule, seed=seed, total=stats.meant)
        facts = {
            "effective_rank": truncation.effective_rank,
            "rank": truncation.factors.rank,
            "kept": truncation.kept,
            "residual": truncation.residual,
        }
        return TensorDifference(**{**asdict(row), **facts}), truncation.factors.to("cpu"), stats

    names = [entry.name for entry in entries]
    base.prefetch(names)
    for _, change in vector.terms:
        if isinstance(change, FinetunedChange):
            change.prefetch(names)
    # Over the network, only selected tensors are read.
    selected = set(names) if base.remote else None
    lineage = tuple(kinship(base, change, selected) for _, change in vector.terms)
    inputs = inputs_of(base, {"vector": vector})
    count = diff_workers(workers, whole=rule is not None or save_to is not None)
    writer, saved = None, None
    if save_to is not None:
        identity = identity_of(inputs, rule=str(rule), selection=asdict(selection), seed=seed,
                               matrices_only=matrices_only,
                               device=torch_device.split(":")[0])  # fmt: skip
        writer = VectorWriter(Path(save_to), folders(inputs), overwrite, identity=identity)
        if writer.complete:  # of a run that was killed thereafter
            writer, saved = None, read_record(Path(save_to))
    done, total = 0, sum(entry.nbytes for entry in entries)
    rows: list[TensorDifference] = []
    sums = ChangeStats()
    # Statistics alone need no torch.
    threads = nullcontext() if rule is None and save_to is None else torch_threads(1)
    with threads, writer or nullcontext():
        for entry, result in zip(entries, in_order(compare, entries, count), strict=True):
            done += entry.nbytes
            if progress is not None:
                progress("diff", done, total)
            if result is None:
                continue
            row, change, stats = result
            rows.append(row)
            sums.merge(stats)
            if spectra is not None and isinstance(change, LowRank):
                spectra[row.name] = change.S.tolist()
            if writer is not None:
                writer.add(row.name, change)
        if not rows:
            raise EditError(
                f"{vector.label}: changes none of the selected tensors",
                "Widen --targets, --include, --exclude or --layers.",
            )
        if writer is not None:
            record = EditRecord("task-vector", command=list(command))
            record.parameters = {
                "rule": str(rule) if rule is not None else "dense",
                "selection": asdict(selection),
                "seed": seed,
                "base_samples": samples_of(base, selected),
            }
            record.inputs = recorded(inputs, hash_files(inputs, count))
            record.tensors = {
                row.name: {k: v for k, v in asdict(row).items() if k not in ("name", "shape")}
                for row in rows
            }
            record.lineage = [kin.to_dict() for kin in lineage]
            saved = writer.commit(record)
    norm = math.sqrt(sums.meant)
    relative = math.sqrt(sums.meant / sums.base) if sums.base > 0 else 0.0
    fetched = base.fetched
    for _, change in vector.terms:
        fetched += change.finetuned.fetched if isinstance(change, FinetunedChange) else 0
    return Comparison(tuple(rows), norm, relative, lineage, saved, fetched)
