"""Forgetting by a system of the survey: ``ws unlearn``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from weightsurgery.algebra.devices import pick_device
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.models import load_tokenizer
from weightsurgery.learning.stages import process_device
from weightsurgery.progress import Progress
from weightsurgery.surgery.apply import AdapterStorage, Storage
from weightsurgery.unlearning import run as road
from weightsurgery.unlearning.by_system import BySystem, How, SystemPlan
from weightsurgery.unlearning.job import Job, Machine, Output, distributed
from weightsurgery.unlearning.matrices import matrices
from weightsurgery.unlearning.run import Unlearned
from weightsurgery.unlearning.sets import Sets
from weightsurgery.vectors.sources import split_data

__all__ = ["Asked", "How", "Unlearned", "plan", "unlearn_by"]


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

    def job(self) -> Job:
        """Reads the data and checks what can be checked before a model is loaded.

        Raises:
            DataError: Data that cannot be read, or that is both to go and to stay.
            EditError: Settings that make no sense, or data that the method needs and lacks.
            WeightSurgeryError: See :mod:`weightsurgery.errors`.
        """
        method = BySystem.of(self.how)
        if not self.forget:
            raise EditError("nothing to forget", "Give data with --forget FILE.")
        for given in (self.forget, self.keep, self.unseen):
            _, strays = split_data(given)
            if strays:
                raise EditError(
                    f"{strays[0]}: no data set",
                    "Methods train on data; 'ws negate' and 'ws project' take vectors.",
                )
        method.check(bool(self.keep), bool(self.unseen))
        where = process_device(self.device) if distributed() else pick_device(self.device)
        selection = self.selection or Selection("all-linear")
        names = matrices(self.base, selection)
        tokenizer = load_tokenizer(self.base.path)
        return Job(
            self.base,
            tokenizer,
            "unlearn",
            method,
            Sets.read(tokenizer, target=self.forget, keep=self.keep, unseen=self.unseen),
            tuple(names),
            replace(selection, scales=()),
            where,
            self.selection is not None,
            rank=self.how.rank,
        )

    @property
    def output(self) -> Output:
        """What is written."""
        return Output(self.out, self.vector, self.scale, self.scales, self.storage, self.overwrite)


def plan(asked: Asked) -> SystemPlan:
    """What :func:`unlearn_by` would train, hold and write; nothing is run.

    Raises:
        WeightSurgeryError: What :func:`unlearn_by` would raise before it loads the model.
    """
    by = Machine(device=asked.device, workers=asked.workers)
    found = road.plan(asked.job(), asked.output, by)
    assert isinstance(found, SystemPlan)
    return found


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
        WeightSurgeryError: See :meth:`Asked.job` and :func:`weightsurgery.unlearning.run.run`.
    """
    by = Machine(progress, asked.device, asked.workers, command)
    return road.run(asked.job(), asked.output, by)
