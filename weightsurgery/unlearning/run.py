"""Runs a job: its vector is found and saved, and one streaming edit applies it.

The change that a method found in memory is saved as one task vector beside the output,
``W' = W − T`` to forget and ``W + T`` to learn. Then one edit writes the output, as ``ws negate``
and ``ws add`` would of that vector; or an adapter, if the vector is in factors. A vector that a
killed run of the same settings and inputs had finished is used again; a training that was killed
goes on where its method saves points of it. Under torchrun or accelerate all processes train, and
the first one writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from weightsurgery.checkpoint.plain_files import held_bytes
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.checkpoint.staging import Staging, output_errors
from weightsurgery.checkpoint.targets import beside, check_target
from weightsurgery.learning.stages import is_main
from weightsurgery.surgery.apply import AdapterStorage, Applied, Storage, apply, plan_edit
from weightsurgery.surgery.edits import Add, Negate
from weightsurgery.unlearning.job import Job, Machine, Output
from weightsurgery.unlearning.method import GUARD
from weightsurgery.unlearning.plan import TrainingPlan, check_space
from weightsurgery.unlearning.saving import find_and_save, finished, workspace_of
from weightsurgery.vectors.deltas import DenseDelta
from weightsurgery.vectors.saved import SavedChange
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["Forget", "PlannedChange", "Unlearned", "plan", "run"]


@dataclass(frozen=True)
class Unlearned:
    """The applied edit and its saved vector.

    Attributes:
        applied: The edit.
        vector: Record of the saved vector.
        place: Where that is.
        reused: It was there already, finished by an earlier run.
        notices: What the user should know, one line per notice.
    """

    applied: Applied
    vector: EditRecord
    place: Path
    reused: bool
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Forget(Negate):
    """``W' = W − λ T``, with the origin of ``T`` in the record."""

    origin: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "project"

    @override
    def parameters(self) -> Mapping[str, Any]:
        return {**self.origin, **super().parameters()}


@dataclass(frozen=True)
class _Unlearn(Forget):
    """The same by a system of the survey."""

    name: ClassVar[str] = "unlearn"


@dataclass(frozen=True)
class _Learn(Add):
    """``W' = W + λ T``, with the origin of ``T`` in the record."""

    origin: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "learn"

    @override
    def parameters(self) -> Mapping[str, Any]:
        return {**self.origin, **super().parameters()}


_EDITS: Mapping[str, type[Forget] | type[_Learn]] = {
    "project": Forget,
    "unlearn": _Unlearn,
    "learn": _Learn,
}


@dataclass
class PlannedChange:
    """A change that is still to be trained, for plans: the matrices' names without values."""

    names: Sequence[str]
    label: str = "the change to be trained"

    def at(self, name: str) -> DenseDelta | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return DenseDelta(self._rows) if name in self.names else None

    def rows_at(self, name: str) -> bool | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return True if name in self.names else None

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return {"kind": "memory", "name": self.label, "paths": []}

    @staticmethod
    def _rows(start: int, stop: int) -> Any:
        raise AssertionError("a change that is still to be trained was read")


def plan(job: Job, output: Output, machine: Machine) -> TrainingPlan:
    """What :func:`run` would train, hold and write; nothing is run.

    Raises:
        WeightSurgeryError: What :func:`run` would raise before it loads the model.
    """
    return _planned(job, output, machine)[0]


def run(job: Job, output: Output, machine: Machine) -> Unlearned | None:
    """Find the vector, save it, and write the edited checkpoint.

    Args:
        job: What decides the vector.
        output: What is written.
        machine: Who does the work.

    Returns:
        The edit and its vector; None in the processes of a distributed run that do not write.

    Raises:
        DataError: Data that the model cannot take.
        EditError: Settings that make no sense, or nothing was found.
        HarmError: The change goes beyond its budget.
        UnsupportedCheckpointError: Quantised, no causal language model, or a matrix is no linear
            layer of its own in memory.
        NonFiniteError: The training ran away.
        OutputError: The outputs may not or cannot be written.
        WeightSurgeryError: See :mod:`weightsurgery.errors`. A vector that was finished stays.
    """
    place = output.place
    if not is_main() and finished(job, place) is not None:
        return None
    # Every process refuses what the first one would: none trains on alone, waiting for the others.
    planned, record = _planned(job, output, machine)
    if not is_main():
        if record is None:
            job.method.find(job, replace(machine, progress=None), workspace_of(job, place))
        return None
    reused = record is not None
    if reused:
        Staging.clear(place, job.digest)
    if record is None:
        there = held_bytes(workspace_of(job, place))
        beside = max(0, job.method.resume_bytes(job, planned.trained) - there)
        check_space(planned, output.target, place, beside)
        record = find_and_save(
            job,
            place,
            output.overwrite,
            lambda workspace: job.method.find(job, machine, workspace),
            machine.command,
        )
    applied = apply(
        _EDITS[job.edit](_saved(job, place), output.scale, _origin(record)),
        job.base,
        output.out,
        selection=replace(job.selection, scales=output.scales),
        storage=output.storage,
        device=machine.device,
        workers=machine.workers,
        overwrite=output.overwrite,
        allow_unrelated=output.allow_unrelated,
        command=machine.command,
        progress=machine.progress,
    )
    notices = job.method.notices(job, record)
    if GUARD in record.summary and (job.rank is not None or output.scale != 1 or output.scales):
        notices.append(
            "What was measured is the change as it was found; at another rank or scale, as here, it"
            " is another: score the output (ws evaluate)."
        )
    if reused:
        notices.append(f"{place} was there, of the same settings and inputs: nothing was trained.")
    return Unlearned(applied, record, place, reused, tuple(notices))


def _saved(job: Job, place: Path) -> TaskVector:
    return TaskVector.of(SavedChange(job.base, resolve_source(place)))


def _origin(record: EditRecord) -> dict[str, Any]:
    """The vector's origin, for the edit's record: its parameters and the data it was made from."""
    parameters = {key: value for key, value in record.parameters.items() if key != "base_samples"}
    parameters["data"] = {
        role: {"name": entry["name"], "sha256": entry["files"]}
        | ({"kind": entry["kind"]} if role == "never_knew" else {})
        for role, entry in record.inputs.items()
        if entry["kind"] == "data" or role == "never_knew"
    }
    return parameters


def _planned(job: Job, output: Output, machine: Machine) -> tuple[TrainingPlan, EditRecord | None]:
    """The plan, and the vector's record where an earlier run had finished it."""
    storage, vector = output.storage or Storage(), TaskVector(())  # none yet
    if isinstance(storage, AdapterStorage):
        storage = replace(storage, rule=job.method.factors(job))
        vector = TaskVector.of(PlannedChange(job.names))
    writing = plan_edit(
        _EDITS[job.edit](vector, output.scale),
        job.base,
        output.out,
        replace(job.selection, scales=output.scales),
        storage,
        machine.workers,
        output.overwrite,
    )
    record, target = finished(job, output.place), output.target
    with output_errors(target):
        resumable = beside(target).exists()  # the edit itself looks closer
        check_target(target, [*job.read_places, output.place], output.overwrite or resumable)
        if record is None:
            check_target(output.place, job.read_places, output.overwrite)
    return job.method.plan(job, writing, output.place, record is not None), record
