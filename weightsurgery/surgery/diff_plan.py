"""The plan of a comparison, from headers alone: what it reads, fetches and writes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from weightsurgery.algebra.lowrank import Rank, RankRule
from weightsurgery.checkpoint.header import BLOCK_ELEMENTS, TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.targets import check_target
from weightsurgery.errors import EditError
from weightsurgery.surgery.provenance import folders, inputs_of
from weightsurgery.surgery.workers import cores
from weightsurgery.vectors.deltas import DenseDelta
from weightsurgery.vectors.finetuned import FinetunedChange, refuse_quantised
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["DiffPlan", "compared", "diff_workers", "plan_diff"]


@dataclass(frozen=True)
class DiffPlan:
    """The cost of a comparison.

    Attributes:
        tensors: Names of those that are compared, in the base's order.
        parameters: Their elements.
        read_bytes: Bytes of weights to be read, of both sides.
        fetch_bytes: Of these, bytes that come over the network.
        write_bytes: Bytes of the saved vector, an upper bound where the rank is not known yet;
            0 if nothing is saved.
        memory_bytes: Estimate of the working memory at its peak, without the interpreter.
        free_bytes: Free space on the vector's disk; None if nothing is saved.
    """

    tensors: tuple[str, ...]
    parameters: int
    read_bytes: int
    fetch_bytes: int
    write_bytes: int
    memory_bytes: int
    free_bytes: int | None


def compared(base: Checkpoint, selection: Selection, matrices_only: bool) -> list[TensorEntry]:
    """The tensors that are compared."""
    return [
        base.entry(name)
        for name in selection.resolve(base.entries)
        if not matrices_only or len(base.entry(name).shape) == 2
    ]


def diff_workers(workers: int | None, whole: bool) -> int:
    """Threads; two where whole matrices are in flight, because they are saved or decomposed."""
    return workers or min(cores(), 2 if whole else 8)


def plan_diff(
    base: Checkpoint,
    vector: TaskVector,
    *,
    selection: Selection | None = None,
    rule: RankRule | None = None,
    save_to: str | os.PathLike[str] | None = None,
    matrices_only: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
) -> DiffPlan:
    """Plan what :func:`weightsurgery.surgery.compare.diff` would do, and refuse what cannot work.

    Raises:
        WeightSurgeryError: As ``diff`` would before it reads a weight.
    """
    refuse_quantised(base)
    touched, read_bytes = [], 0
    for entry in compared(base, selection or Selection(), matrices_only):
        delta = vector.at(entry.name)
        if delta is None:
            continue
        touched.append(entry)
        dense = [term.stored for _, term in delta.terms if isinstance(term, DenseDelta)]
        read_bytes += entry.nbytes + sum(stored.entry.nbytes for stored in dense if stored)
    if not touched:
        raise EditError(
            f"{vector.label}: changes none of the selected tensors",
            "Widen --targets, --include, --exclude or --layers.",
        )
    names = [entry.name for entry in touched]
    absent = {base.path: base.absent(names)}  # what is compared with itself comes once
    for _, change in vector.terms:
        if isinstance(change, FinetunedChange):
            absent[change.finetuned.path] = change.absent(names)
    free = None
    if save_to is not None:
        target = Path(os.path.realpath(save_to))
        check_target(target, folders(inputs_of(base, {"vector": vector})), overwrite)
        parent = next(path for path in target.parents if path.exists())
        free = shutil.disk_usage(parent).free
    whole = rule is not None or save_to is not None
    # A matrix as float32, and what decomposing it takes beside; blocks of a few megabytes else.
    bytes_per_element = 12 if rule is not None else 4
    held = [bytes_per_element * entry.numel for entry in touched if whole]
    count = diff_workers(workers, whole)
    return DiffPlan(
        tuple(names),
        sum(entry.numel for entry in touched),
        read_bytes,
        sum(absent.values()),
        sum(_saved(entry, rule) for entry in touched) if save_to is not None else 0,
        sum(sorted(held)[-count:]) + count * 6 * 4 * BLOCK_ELEMENTS,
        free,
    )


def _saved(entry: TensorEntry, rule: RankRule | None) -> int:
    """Bytes of a tensor's change as it is saved, in float32."""
    if rule is None or len(entry.shape) != 2:
        return 4 * entry.numel
    m, n = entry.shape
    rank = min(m, n, rule.k) if isinstance(rule, Rank) else min(m, n)
    return 4 * rank * (m + n + 1)
