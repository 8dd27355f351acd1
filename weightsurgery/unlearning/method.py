"""The interface of a method: it finds a change, plans its cost and describes its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from weightsurgery.algebra.lowrank import LowRank, RankRule
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import DataError, HarmError
from weightsurgery.learning.guard import BUDGET, Guard, added, harm
from weightsurgery.learning.parameters import load_float32
from weightsurgery.learning.sharding import is_sharded, whole
from weightsurgery.learning.stages import encode_rows, is_main
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.unlearning.job import Job, Machine
from weightsurgery.unlearning.matrices import stored_matrices
from weightsurgery.unlearning.saving import MethodResult
from weightsurgery.vectors.lora_files import AdapterPlan

if TYPE_CHECKING:
    from weightsurgery.unlearning.plan import TrainingPlan

__all__ = ["GUARD", "Loaded", "Method", "OnModel"]

GUARD = "guard"
"""Key of the guard's report, before and after the change, in a record's summary."""


class Method(ABC):
    """Finds a change, by its own settings.

    Attributes:
        seed: Of every draw.
        packages: What it imports beyond what every training does, by the names of distributions.
        distributed: Whether it can train in more than one process.
    """

    seed: int = 0
    packages: tuple[str, ...] = ()
    distributed: ClassVar[bool] = False

    @abstractmethod
    def find(self, job: Job, machine: Machine, workspace: Path) -> MethodResult:
        """Find the change.

        Args:
            job: The job.
            machine: Device and progress.
            workspace: Where a killed run finds what it had.

        Raises:
            WeightSurgeryError: See :mod:`weightsurgery.errors`.
        """

    @abstractmethod
    def described(self, job: Job) -> dict[str, Any]:
        """Its name and every setting, for the record."""

    @abstractmethod
    def factors(self, job: Job) -> RankRule:
        """The rank of the change, for an adapter.

        Raises:
            EditError: It is of full rank.
        """

    @abstractmethod
    def plan(
        self, job: Job, edit: EditPlan | AdapterPlan, vector: Path, finished: bool
    ) -> TrainingPlan:
        """What it will take, from headers alone.

        Args:
            job: The job.
            edit: The plan of writing the output.
            vector: Where the vector goes.
            finished: Whether it is there already.
        """

    def shares_steps(self, job: Job) -> bool:
        """Whether a step is the same however many processes share it, but for rounding."""
        return False

    def resume_bytes(self, job: Job, trained: int) -> int:
        """Bytes on disk, at most, from which a killed training can resume.

        Args:
            job: The job.
            trained: Number of trained parameters.
        """
        return 0

    def notices(self, job: Job, record: EditRecord) -> list[str]:
        """What the user should know of the vector, one line per notice."""
        return []


@dataclass(frozen=True)
class Loaded:
    """A job's model in memory.

    Attributes:
        model: Float32, on the device to work on.
        stored: The parameters that may change → the matrices they are stored as, in the model's
            order.
        machine: Device and progress.
        workspace: See :meth:`Method.find`.
        guard: What looks at the change in the end; None where another process does.
    """

    model: Any
    stored: Mapping[str, str]
    machine: Machine
    workspace: Path
    guard: Guard | None = None


class OnModel(Method):
    """A method that works on the model in memory, which a guard looks at before and after.

    Attributes:
        max_length: Tokens beyond which examples are split; None for what the model reads.
        budget: Divergence that ordinary language may suffer, in nats a token.
        allow_harm: Write what goes beyond it all the same.
    """

    max_length: int | None = None
    budget: float = BUDGET
    allow_harm: bool = False

    @property
    def gentler(self) -> str:
        """What changes less, as a remedy begins."""
        return "Take fewer --steps or a smaller --lr, keep more data"

    @abstractmethod
    def change(
        self, job: Job, loaded: Loaded
    ) -> tuple[Mapping[str, torch.Tensor | LowRank], dict[str, Any]]:
        """Find the change; the model is as before in the end, to the bit.

        Returns:
            ``W' − W`` by parameter, on the CPU or in pieces as the model is, and a summary of the
            training, for the record.
        """

    def find(self, job: Job, machine: Machine, workspace: Path) -> MethodResult:
        """See :class:`Method`.

        Raises:
            DataError: Data that the model cannot take.
            HarmError: The change goes beyond the budget, and may not.
            UnsupportedCheckpointError: See :mod:`weightsurgery.unlearning.matrices`.
        """
        model: Any = load_float32(job.base, job.device)
        stored = stored_matrices(model, job.base, job.names)
        for dataset in job.sets.every:
            try:
                encode_rows(model, job.tokenizer, dataset.examples, self.max_length)
            except DataError as error:
                raise DataError(f"{dataset.name}: {error.what}", error.remedy) from None
        if not is_sharded(model):
            model.to(job.device)
        guard = None
        if is_main() or is_sharded(model):  # of pieces, all run it
            guard = Guard(
                model,
                job.tokenizer,
                job.sets.examples,
                {dataset.name: dataset.examples for dataset in job.sets.keep},
                role="task" if job.learning else "forget",
                budget=self.budget,
                seed=self.seed,
                progress=machine.progress,
            )
        change, summary = self.change(job, Loaded(model, stored, machine, workspace, guard))
        if guard is not None:
            with added(model, change):
                report = guard.report(model).to_dict()
            if not report["inside"] and not self.allow_harm and is_main():
                raise HarmError(
                    f"{harm(report)} Nothing was written.",
                    f"{self.gentler}, raise --budget if that much is bearable, or pass --allow-harm"
                    " to write it all the same.",
                )
            summary[GUARD] = report
        return MethodResult(_put_together(change, stored), summary)


def _put_together(
    change: Mapping[str, torch.Tensor | LowRank], stored: Mapping[str, str]
) -> dict[str, torch.Tensor | LowRank]:
    """By stored name what changes; pieces are put together, for the process that writes."""
    result: dict[str, torch.Tensor | LowRank] = {}
    for name, delta in change.items():
        task = delta if isinstance(delta, LowRank) else whole(delta)
        if is_main():
            result[stored[name]] = task if isinstance(task, LowRank) else task.cpu()
    return result
