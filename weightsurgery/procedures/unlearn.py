"""Forgetting and learning from data: find the change in rounds, save it, and write the edit.

What :func:`weightsurgery.learning.rounds.find_change` finds on a model in memory is saved as one
task vector beside the output, ``W' = W − T`` to forget and ``W + T`` to learn. Then one streaming
edit writes the output, as ``ws negate`` and ``ws add`` would of that vector; or an adapter, if the
vector is truncated. A vector that a
killed run of the same settings and inputs had finished is used again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, read_record, verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import EditError, WeightSurgeryError
from weightsurgery.procedures.found_vector import find_change_of, write_vector
from weightsurgery.procedures.kept_training import find_and_save
from weightsurgery.procedures.request import Request, Search, Sources
from weightsurgery.procedures.training_plan import TrainingPlan, check_space, training_plan
from weightsurgery.progress import Progress
from weightsurgery.surgery.apply import AdapterStorage, Applied, Storage, apply, plan_edit
from weightsurgery.surgery.edits import Add, Negate
from weightsurgery.vectors.deltas import DenseDelta
from weightsurgery.vectors.saved import SavedChange, is_saved_vector
from weightsurgery.vectors.task_vector import TaskVector

__all__ = [
    "Coming",
    "Forget",
    "Search",
    "Sources",
    "Unlearned",
    "plan",
    "unlearn",
    "vector_place",
]


# A loss that is still above this share of the first is worth a word.
_LITTLE = 0.5


@dataclass(frozen=True)
class Unlearned:
    """What came of an edit from data.

    Attributes:
        applied: The edit.
        vector: Record of the saved vector.
        place: Where that is.
        reused: It was there already, finished by an earlier run.
        notices: Things the user should know, a line each.
    """

    applied: Applied
    vector: EditRecord
    place: Path
    reused: bool
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Forget(Negate):
    """``W' = W − λ T``, with how ``T`` was found in the record."""

    how: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "project"

    def parameters(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.surgery.edit.Edit`."""
        return {**self.how, **super().parameters()}


@dataclass(frozen=True)
class _Learn(Add):
    """``W' = W + λ T``, with how ``T`` was found in the record."""

    how: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "learn"

    def parameters(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.surgery.edit.Edit`."""
        return {**self.how, **super().parameters()}


@dataclass
class Coming:
    """A change that is still to be trained, for plans: which matrices, and nothing of what."""

    names: Sequence[str]
    label: str = "the change to be trained"

    def at(self, name: str) -> DenseDelta | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return DenseDelta(self._rows) if name in self.names else None

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return {"kind": "memory", "name": self.label, "paths": []}

    @staticmethod
    def _rows(start: int, stop: int) -> Any:
        raise AssertionError("a change that is still to be trained was read")


def vector_place(out: str | os.PathLike[str], vector: str | os.PathLike[str] | None) -> Path:
    """Where the vector goes: as named, or beside the output under its name and ``.vector``."""
    target = Path(os.path.realpath(out))
    if vector is None:
        return target.with_name(f"{target.name}.vector")
    return Path(os.path.realpath(vector))


def plan(
    base: Checkpoint,
    sources: Sources,
    out: str | os.PathLike[str],
    search: Search,
    *,
    vector: str | os.PathLike[str] | None = None,
    selection: Selection | None = None,
    storage: Storage | AdapterStorage | None = None,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    allow_unrelated: bool = False,
) -> TrainingPlan:
    """What :func:`unlearn` with these arguments would train, hold and write; nothing is run.

    Raises:
        WeightSurgeryError: What :func:`unlearn` would raise before it loads the model.
    """
    selection = selection or Selection(search.targets)
    request = Request.read(base, sources, search, selection, device, allow_unrelated)
    place = vector_place(out, vector)
    return _planned(request, out, place, selection, storage, workers, overwrite)[0]


def unlearn(
    base: Checkpoint,
    sources: Sources,
    out: str | os.PathLike[str],
    search: Search,
    *,
    scale: float = 1.0,
    vector: str | os.PathLike[str] | None = None,
    selection: Selection | None = None,
    storage: Storage | AdapterStorage | None = None,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    allow_unrelated: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Unlearned:
    """Forget or learn data sets: find the vector, save it, and write the edited checkpoint.

    Args:
        base: The checkpoint, of a causal language model; it is held in float32 to be trained.
        sources: What is read.
        out: Directory to write.
        search: How the change is found; its objective tells forgetting from learning.
        scale: λ of the edit; the saved vector is as it was found.
        vector: Where the vector is saved; by default ``OUT.vector``.
        selection: Which matrices; None for :attr:`Search.targets`. Its scales are the edit's alone.
        storage: dtype and rounding of the result; or an adapter's, which takes a search with a
            rank.
        device: Where to train.
        workers: Threads of the edit.
        overwrite: Replace existing outputs of this tool, vector included.
        allow_unrelated: Go on although a vector to keep does not derive from the base.
        command: The command line, for the records.
        progress: Called as ``progress(text, done, total)``, in units of what goes on.

    Returns:
        What came of it.

    Raises:
        DataError: Data that cannot be read or that the model cannot take, that is both to go and
            to stay, or that validates what the edit sees.
        EditError: Settings that make no sense, or nothing was found.
        UnsupportedCheckpointError: Quantised, no causal language model, or a matrix is no linear
            layer of its own in memory.
        OutputError: The outputs may not or cannot be written.
        WeightSurgeryError: See :mod:`weightsurgery.errors`. A vector that was finished stays.
    """
    selection = selection or Selection(search.targets)
    request = Request.read(base, sources, search, selection, device, allow_unrelated)
    place = vector_place(out, vector)
    planned, found = _planned(request, out, place, selection, storage, workers, overwrite)
    reused = found is not None
    if found is None:
        check_space(planned, Path(os.path.realpath(out)), place)
        found = find_and_save(
            request,
            place,
            overwrite,
            lambda workspace: find_change_of(request, workspace, progress),
            lambda writer, made: write_vector(request, writer, made, command),
        )
    saved = TaskVector.of(SavedChange(base, resolve_source(place)))
    how = {key: value for key, value in found.parameters.items() if key != "base_samples"}
    how["data"] = {
        role: {"name": each["name"], "sha256": each["files"]}
        for role, each in found.inputs.items()
        if each["kind"] == "data"
    }
    applied = apply(
        (_Learn if search.learning else Forget)(saved, scale, how),
        base,
        out,
        selection=selection,
        storage=storage,
        device=device,
        workers=workers,
        overwrite=overwrite,
        allow_unrelated=allow_unrelated,
        command=command,
        progress=progress,
    )
    notices = tuple(_notices(request, found, place, reused))
    return Unlearned(applied, found, place, reused, notices)


def _notices(request: Request, found: EditRecord, place: Path, reused: bool) -> list[str]:
    notices = []
    first = found.summary["rounds"][0]["first_loss"]
    last = found.summary["rounds"][-1]["last_loss"]
    if request.search.neighbours is not None:
        steps = found.summary["steps"]
        look = next(each for each in found.summary["looks"] if each["step"] == steps)
        if request.search.learning and look["known"] < 0.99:
            notices.append(
                f"At {1 - look['known']:.0%} of the places where it was to be learned the truth is"
                " not yet what is said: take more --steps, or a larger --budget."
            )
        elif not request.search.learning and look["known"] > 0.01:
            notices.append(
                f"At {look['known']:.0%} of the places where the truth would be said it is still"
                " the likeliest answer: take more --steps, or a larger --budget."
            )
    elif request.search.objective != "negate" and last > _LITTLE * first:
        notices.append(
            f"The loss hardly fell ({first:.3g} to {last:.3g}): take more --steps, or leave more"
            " room with a larger --epsilon or, keeping vectors, a smaller --keep-rank."
        )
    if reused:
        notices.append(f"{place} was there, of the same settings and inputs: nothing was trained.")
    if request.nothing_kept and request.search.neighbours is None:
        notices.append(
            "Nothing was named to keep: texts of random words stood for it. What must stay is safer"
            " named with --keep."
        )
    return notices


def _planned(
    request: Request,
    out: str | os.PathLike[str],
    place: Path,
    selection: Selection,
    storage: Storage | AdapterStorage | None,
    workers: int | None,
    overwrite: bool,
) -> tuple[TrainingPlan, EditRecord | None]:
    """The plan, and the vector's record where an earlier run had finished it."""
    kind, vector = _Learn if request.search.learning else Forget, TaskVector(())  # none yet
    storage = storage or Storage()
    if isinstance(storage, AdapterStorage):
        rule = request.search.rank
        if rule is None and request.search.neighbours is not None:
            rule = Rank(request.search.neighbours.rank)
        if rule is None:
            raise EditError(
                "--as adapter with data: the change that is trained is of full rank",
                "Pass --rank K (or --energy E) to truncate it; what that loses is reported.",
            )
        storage = replace(storage, rule=rule)
        vector = TaskVector.of(Coming(request.names))
    planned = plan_edit(kind(vector), request.base, out, selection, storage, workers, overwrite)
    found = _finished(request, place)
    request.check_places(Path(os.path.realpath(out)), place, found is not None, overwrite)
    return training_plan(request, planned, place, found is not None), found


def _finished(request: Request, place: Path) -> EditRecord | None:
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
