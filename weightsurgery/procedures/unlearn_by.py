"""Forgetting by a system of the survey: train, save the vector, and write the edit.

The road is that of forgetting from data (:mod:`weightsurgery.procedures.unlearn`): what the
system found on the model in memory is saved as one task vector ``T`` beside the output, and one
streaming edit writes ``W' = W − λT``, as ``ws negate`` would of that vector. After a kill, a run of
the same settings and inputs uses the vector that was finished; or goes on with the training, where
one of :data:`weightsurgery.learning.unlearners.UNLEARNERS` had saved how far it was. Under torchrun
or accelerate all processes train, and the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, read_record, verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.checkpoint.staging import Staging, check_target, held_bytes, output_errors
from weightsurgery.errors import EditError, WeightSurgeryError
from weightsurgery.learning.guard import harm
from weightsurgery.learning.identify import is_main
from weightsurgery.procedures.kept_training import find_and_save, workspace_of
from weightsurgery.procedures.system_plan import SystemPlan
from weightsurgery.procedures.system_request import How, SystemRequest
from weightsurgery.procedures.system_vector import find_change, write_vector
from weightsurgery.procedures.training_plan import check_space
from weightsurgery.procedures.unlearn import Coming, Forget, Unlearned, vector_place
from weightsurgery.progress import Progress
from weightsurgery.surgery.apply import AdapterStorage, Storage, apply, plan_edit
from weightsurgery.vectors.saved import SavedChange, is_saved_vector
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["Asked", "How", "Unlearned", "plan", "unlearn_by"]


@dataclass(frozen=True)
class _Unlearn(Forget):
    """The same, under this procedure's name."""

    name: ClassVar[str] = "unlearn"


@dataclass(frozen=True)
class Asked:
    """A forgetting as it is asked for.

    Attributes:
        base: The checkpoint, of a causal language model; it is held in float32 to be trained.
        forget: Data sets to forget, by name.
        keep: Data sets to keep.
        out: Directory to write.
        how: The method and its settings.
        scale: λ of the edit; the saved vector is as it was found.
        unseen: Data sets that the model never saw.
        vector: Where the vector is saved; by default ``OUT.vector``.
        selection: Which matrices; None for those that the method trains.
        scales: Of the edit, as in a selection.
        storage: dtype and rounding of the result; or an adapter's, which takes a rank.
        device: Where to train.
        workers: Threads of the edit.
        overwrite: Replace existing outputs of this tool, vector included.
    """

    base: Checkpoint
    forget: Sequence[str]
    keep: Sequence[str]
    out: str | os.PathLike[str]
    how: How
    scale: float = 1.0
    unseen: Sequence[str] = ()
    vector: str | os.PathLike[str] | None = None
    selection: Selection | None = None
    scales: tuple[tuple[str, float], ...] = ()
    storage: Storage | AdapterStorage | None = None
    device: str = "auto"
    workers: int | None = None
    overwrite: bool = False

    @property
    def place(self) -> Path:
        """Where the vector is saved."""
        return vector_place(self.out, self.vector)

    def read(self) -> SystemRequest:
        """The data, read, and all that decides the vector, checked."""
        return SystemRequest.read(
            self.base, self.forget, self.keep, self.unseen, self.how, self.selection, self.device
        )


def plan(asked: Asked) -> SystemPlan:
    """What :func:`unlearn_by` would train, hold and write; nothing is run.

    Raises:
        WeightSurgeryError: What :func:`unlearn_by` would raise before it loads the model.
    """
    return _planned(asked, asked.read())[0]


def unlearn_by(
    asked: Asked, *, command: Sequence[str] = (), progress: Progress | None = None
) -> Unlearned | None:
    """Forget data sets by a system: find the vector, save it, and write the edited checkpoint.

    Args:
        asked: What is asked for.
        command: The command line, for the records.
        progress: Called as ``progress(text, done, total)``, in units of what goes on.

    Returns:
        What came of it; None in the processes of a distributed run that do not write.

    Raises:
        DataError: Data that cannot be read or that the model cannot take, or that is both to go
            and to stay.
        EditError: Settings that make no sense, or data that the method needs and lacks.
        UnsupportedCheckpointError: Quantised, no causal language model, or a matrix is no linear
            layer of its own in memory.
        NonFiniteError: The training ran away.
        OutputError: The outputs may not or cannot be written.
        WeightSurgeryError: See :mod:`weightsurgery.errors`. A vector that was finished stays.
    """
    request, place, base, out = asked.read(), asked.place, asked.base, asked.out
    if not is_main() and _finished(request, place) is not None:
        return None
    # Every process refuses what the first one would: none trains on alone, waiting for the others.
    planned, found = _planned(asked, request)
    reused = found is not None
    if not is_main():
        if found is None:
            find_change(request, None, workspace_of(request, place))
        return None
    if found is None:
        there = held_bytes(workspace_of(request, place))
        needed = planned.vector_bytes + max(0, request.kept_bytes(planned.trained) - there)
        check_space(replace(planned, vector_bytes=needed), Path(os.path.realpath(out)), place)
        found = find_and_save(
            request,
            place,
            asked.overwrite,
            lambda workspace: find_change(request, progress, workspace),
            lambda writer, made: write_vector(request, writer, *made, command),
        )
    told = {key: value for key, value in found.parameters.items() if key != "base_samples"}
    told["data"] = {
        role: {"name": each["name"], "sha256": each["files"]}
        for role, each in found.inputs.items()
        if each["kind"] == "data"
    }
    applied = apply(
        _Unlearn(TaskVector.of(SavedChange(base, resolve_source(place))), asked.scale, told),
        base,
        out,
        selection=replace(request.selection, scales=asked.scales),
        storage=_stored(request, asked.storage),
        device=asked.device,
        workers=asked.workers,
        overwrite=asked.overwrite,
        command=command,
        progress=progress,
    )
    return Unlearned(applied, found, place, reused, tuple(_notices(request, found, place, reused)))


def _notices(request: SystemRequest, found: EditRecord, place: Path, reused: bool) -> list[str]:
    notices = []
    if not found.summary["guard"]["inside"]:
        notices.append(harm(found.summary["guard"]))
    if reused:
        notices.append(f"{place} was there, of the same settings and inputs: nothing was trained.")
    if request.sets.keep and not request.row.keeps(request.settings):
        notices.append(f"{request.how.method} does not look at --keep.")
    if request.unseen and not request.row.needs_unseen:
        notices.append(f"{request.how.method} does not look at --unseen.")
    return notices


def _stored(
    request: SystemRequest, storage: Storage | AdapterStorage | None
) -> Storage | AdapterStorage:
    if not isinstance(storage, AdapterStorage):
        return storage or Storage()
    rule = request.how.rank or (None if request.rank is None else Rank(request.rank))
    if rule is None:
        raise EditError(
            f"--as adapter with {request.how.method} in full: the change is of full rank",
            "Train an adapter with --lora-rank R, or pass --rank K to truncate what is found.",
        )
    return replace(storage, rule=rule)


def _planned(asked: Asked, request: SystemRequest) -> tuple[SystemPlan, EditRecord | None]:
    """The plan, and the vector's record where an earlier run had finished it."""
    stored, place, overwrite = _stored(request, asked.storage), asked.place, asked.overwrite
    coming = isinstance(stored, AdapterStorage)
    vector = TaskVector.of(Coming(request.names)) if coming else TaskVector(())
    edit, selection = _Unlearn(vector, asked.scale), replace(request.selection, scales=asked.scales)
    writing = plan_edit(edit, asked.base, asked.out, selection, stored, asked.workers, overwrite)
    found = _finished(request, place)
    target = Path(os.path.realpath(asked.out))
    with output_errors(target):
        resumable = Staging.beside(target).exists()
        check_target(target, [*request.read_places, place], overwrite or resumable)
        if found is None:
            check_target(place, request.read_places, overwrite)
    return SystemPlan.of(request, writing, place, found is not None), found


def _finished(request: SystemRequest, place: Path) -> EditRecord | None:
    """The record of a whole vector that these settings and inputs made."""
    try:
        if not is_saved_vector(place):
            return None
        record = read_record(place)
        if [record.parameters, record.inputs, record.versions] != request.identity():
            return None
        return verify(place)
    except WeightSurgeryError:
        return None  # damaged: it is in the way like any other
