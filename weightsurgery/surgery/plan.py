"""The plan of an edit, from headers alone: what it reads, writes and holds."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsurgery.algebra.activations import work_bytes
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.header import (
    BLOCK_ELEMENTS,
    ShardHeader,
    TensorEntry,
)
from weightsurgery.checkpoint.object_staging import ObjectStaging, check_objects
from weightsurgery.checkpoint.object_store import CONNECTIONS, PART, ObjectPlace, ObjectStore
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.stacks import input_width, is_matrix, is_stack
from weightsurgery.checkpoint.staging import output_errors
from weightsurgery.checkpoint.targets import beside, check_target
from weightsurgery.checkpoint.tied import tied_copies
from weightsurgery.checkpoint.writer import mirrored
from weightsurgery.errors import EditError, MismatchError, SelectionError
from weightsurgery.surgery.edit import Edit, Run
from weightsurgery.surgery.provenance import folders, inputs_of_edit
from weightsurgery.surgery.workers import cores
from weightsurgery.vectors.finetuned import FinetunedChange, refuse_quantised
from weightsurgery.vectors.task_vector import TaskVector

if TYPE_CHECKING:
    from weightsurgery.surgery.as_checkpoint import Storage

__all__ = [
    "EditPlan",
    "check_matrices",
    "plan_checkpoint",
    "worker_count",
]


@dataclass(frozen=True)
class EditPlan:
    """The cost of an edit, known from headers alone.

    Attributes:
        edit: Name of the edit.
        edited: Tensors it may change, with their scale factors.
        copies: Stored copies of tied tensors → the tensor they follow.
        shards: Headers of the output.
        read_bytes: Bytes of weights to be read.
        write_bytes: Bytes of weights to be written.
        download_bytes: Bytes of weight files that come from the Hub first.
        memory_bytes: Estimate of the working memory at its peak, without the interpreter.
        free_bytes: Free space on the output's disk; None on an object store.
    """

    edit: str
    edited: Mapping[str, float]
    copies: Mapping[str, str]
    shards: tuple[ShardHeader, ...]
    read_bytes: int
    write_bytes: int
    memory_bytes: int
    free_bytes: int | None
    download_bytes: int = 0

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""
        return {
            "edit": self.edit,
            "tensors": sum(len(header.entries) for header in self.shards),
            "edited": sorted(self.edited),
            "shards": {header.shard: header.size for header in self.shards},
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "download_bytes": self.download_bytes,
            "memory_bytes": self.memory_bytes,
            "free_bytes": self.free_bytes,
        }


def worker_count(edit: Edit, workers: int | None) -> int:
    """Threads of an edit: two for decompositions, which hold matrices in memory.

    Raises:
        EditError: Fewer than one.
    """
    if workers is not None:
        if workers < 1:
            raise EditError(f"{workers} workers", "Use at least one.")
        return workers
    return min(cores(), 2 if edit.factors else 8)


def _check_tied(edit: Edit, copy: str, original: str) -> None:
    """Refuse a change of a tied copy alone, which would be dropped."""
    for vector in edit.vectors().values():
        if vector.rows_at(copy) is not None and vector.rows_at(original) is None:
            raise MismatchError(
                f"{vector.label}: changes {copy!r} alone, which is tied to {original!r}",
                f"Untie the model first, or leave both alone with --exclude '{original}'"
                f" --exclude '{copy}'.",
            )


def check_matrices(base: Checkpoint, chosen: Mapping[str, float]) -> None:
    """Refuse tensors of more than two axes that are no stacks: none is discriminated.

    Raises:
        EditError: One is among the chosen.
    """
    for name in chosen:
        if len(base.entry(name).shape) > 2 and not is_stack(base.entry(name)):
            raise EditError(
                f"tensor {name!r} has shape {list(base.entry(name).shape)}; discrimination needs a"
                " matrix",
                f"Leave it as it is with --exclude '{name}', or use plain negate or add.",
            )


def plan_checkpoint(
    edit: Edit,
    base: Checkpoint,
    out: str | os.PathLike[str],
    storage: Storage,
    run: Run,
) -> EditPlan:
    """Plan what an edit reads, writes and holds, and refuse what cannot work.

    Raises:
        UnsupportedCheckpointError: The base is quantised.
        SelectionError: Nothing is selected, or one name of a tied pair.
        MismatchError: A vector changes one name of a tied pair alone, or statistics lack a tensor.
        OutputError: The output may not be written here.
        EditError: A parameter makes no sense, or a selected tensor is no matrix where one is
            needed.
    """
    refuse_quantised(base)
    free = _free_where_allowed(out, folders(inputs_of_edit(edit, base)), run.overwrite)
    copies = tied_copies(base)
    chosen = run.selection.resolve(base.entries)
    for copy, original in copies.items():
        # A tied copy shares its original's fate, whatever the patterns say of its name.
        if chosen.pop(copy, None) is not None and original not in chosen:
            raise SelectionError(
                f"{copy!r} is selected without {original!r}, to which it is tied",
                "Select both or neither: they are one matrix.",
            )
        if original in chosen:
            chosen[copy] = chosen[original]
            _check_tied(edit, copy, original)
    if edit.factors:
        check_matrices(base, chosen)
    vectors = edit.vectors().values()
    terms = sum(len(vector.terms) for vector in vectors)
    changed = [base.entry(name) for name in chosen]
    matrices = [m for m in changed if is_matrix(m) or (edit.factors and is_stack(m))]
    widths = {m.name: input_width(base, m.name) for m in matrices}
    edit.check_statistics(base, [name for name in widths if name not in copies])
    grams = len(edit.statistics())
    shards = tuple(mirrored(header, storage.stored) for header in base.shards.values())
    count = worker_count(edit, run.workers)
    per_worker = 6 * 4 * BLOCK_ELEMENTS
    if edit.factors:
        # The change, its float64 projection on the Krylov basis, and a block of the base; later
        # the factors alone, and the inputs' float64 matrix with what solving it takes. Of a stack
        # that is one matrix at a time, beside the factors of all, twice while they are gathered.
        works = [
            max(12 * math.prod(m.shape[-2:]), work_bytes(widths[m.name]) if grams else 0)
            + (8 * _factor_elements(edit, m) if is_stack(m) else 0)
            for m in matrices
        ]
        memory = sum(work + per_worker for work in sorted(works, reverse=True)[:count])
    else:
        memory = count * per_worker
    if free is None:  # parts that are being filled and sent
        memory += count * (CONNECTIONS + 2) * PART
    return EditPlan(
        edit.name,
        chosen,
        copies,
        shards,
        read_bytes=base.layout.nbytes
        + terms * sum(entry.nbytes for entry in changed)
        + grams * sum(4 * width**2 for width in widths.values()),
        write_bytes=sum(header.size for header in shards),
        memory_bytes=memory,
        free_bytes=free,
        download_bytes=_download_bytes(base, vectors),
    )


def _free_where_allowed(
    out: str | os.PathLike[str], inputs: Sequence[Path], overwrite: bool
) -> int | None:
    """The free space where an output may be written; None on an object store.

    Raises:
        OutputError: It may not.
    """
    place = ObjectPlace.of(out)
    if place is not None:
        if not ObjectStaging.begun(place):  # else there may be something to resume
            check_objects(ObjectStore(place), overwrite)
        return None
    target = Path(os.path.realpath(os.fspath(out)))
    with output_errors(target):
        if not beside(target).exists():
            check_target(target, inputs, overwrite)
    return shutil.disk_usage(next(path for path in target.parents if path.exists())).free


def _factor_elements(edit: Edit, entry: TensorEntry) -> int:
    """Largest number of elements in the factors of a stack's change."""
    count, m, n = entry.shape
    rule = getattr(edit, "rank", None)
    rank = min(m, n, rule.k) if isinstance(rule, Rank) else min(m, n)
    return count * rank * (m + n)


def _download_bytes(base: Checkpoint, vectors: Iterable[TaskVector]) -> int:
    """Bytes of the base and the fine-tuned checkpoints that are not in the Hub's cache."""
    by_path = {base.path: base.to_download}
    for vector in vectors:
        for _, change in vector.terms:
            if isinstance(change, FinetunedChange):
                by_path[change.finetuned.path] = change.finetuned.to_download
    return sum(by_path.values())
