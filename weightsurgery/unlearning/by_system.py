"""A system that forgets from data, as a method of the road."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from weightsurgery.algebra.lowrank import LowRank, Rank, RankRule
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import EditError, NonFiniteError
from weightsurgery.learning.guard import harm
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.unlearning.job import Job, Machine
from weightsurgery.unlearning.method import GUARD, Loaded, OnModel
from weightsurgery.unlearning.methods import system
from weightsurgery.unlearning.plan import SystemPlan, apart
from weightsurgery.unlearning.saving import MethodResult
from weightsurgery.unlearning.system import ChangeRequest, System
from weightsurgery.vectors.lora_files import AdapterPlan

__all__ = ["BySystem", "MethodSettings"]


@dataclass(frozen=True)
class MethodSettings:
    """A method of ``ws unlearn`` and how it trains.

    Attributes:
        method: A name of :data:`weightsurgery.unlearning.methods.METHODS`.
        settings: The method's own, by name; the others are as published.
        training: Fields of :class:`~weightsurgery.learning.settings.Training`, likewise.
        lora_rank: Train a LoRA adapter of this rank; None for the method's way.
        rank: Truncate what was found; None for as it is.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    rank: RankRule | None = None

    def trained(self, row: type[System]) -> Training:
        """The training: as published but for what is given; epochs give way to steps and back."""
        given = dict(self.training)
        if given.get("epochs") is not None and given.get("steps") is None:
            given["steps"] = None
        return replace(row.published, **given)


@dataclass(frozen=True)
class BySystem(OnModel):
    """Forget by a system.

    Attributes:
        name: The system's.
        row: The system.
        settings: Its settings, of the class that it says.
        training: How it trains.
        lora_rank: Of the adapter that is trained, if one is.
    """

    name: str
    row: type[System]
    settings: Any
    training: Training
    lora_rank: int | None
    distributed = True
    allow_harm = True  # it is told: these are for comparison

    @classmethod
    def of(cls, how: MethodSettings) -> BySystem:
        """A system with its settings.

        Raises:
            EditError: There is none of this name, or settings that make no sense.
        """
        row = system(how.method)
        settings, training = settings_of(row, how.settings), how.trained(row)
        if how.lora_rank is not None and how.lora_rank < 1:
            raise EditError(f"LoRA rank {how.lora_rank}", "Give a whole number from 1.")
        if how.lora_rank is not None and not row.takes_rank:
            raise EditError(f"{how.method} as a LoRA adapter", "Leave out --lora-rank.")
        rank = how.lora_rank if how.lora_rank is not None else row.adapter_rank
        return cls(how.method, row, settings, training, rank)

    @property
    @override
    def seed(self) -> int:  # type: ignore[override]
        return self.training.seed

    @property
    @override
    def max_length(self) -> int | None:  # type: ignore[override]
        return self.training.max_length

    @property
    @override
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.lora_rank is None else ("peft",)

    @override
    def described(self, job: Job) -> dict[str, Any]:
        return {
            "method": self.name,
            "source": self.row.paper,
            "settings": asdict(self.settings),
            "training": asdict(self.training),
            "lora_rank": self.lora_rank,
            "rank": None if job.rank is None else str(job.rank),
            "selection": asdict(job.selection),
            "chosen": job.chosen,
        }

    def check(self, keep: bool, unseen: bool) -> None:
        """Refuse to work without the data that it works on.

        Raises:
            EditError: It lacks some.
        """
        row, settings = self.row, self.settings
        if row.keeps(settings) and not keep:
            instead = ", or a λ of your own with --set scale=0.5" * (
                hasattr(settings, "scale") and not row.keeps(replace(settings, scale=1.0))
            )
            raise EditError(
                f"{self.name} without data to keep, which it works on",
                f"Give --keep FILE{instead}.",
            )
        if row.needs_unseen and not unseen:
            raise EditError(
                f"{self.name} without data the model never saw, which it measures by",
                "Give --unseen FILE: texts of the same form as those to forget.",
            )

    @override
    def factors(self, job: Job) -> RankRule:
        rule = job.rank or (None if self.lora_rank is None else Rank(self.lora_rank))
        if rule is None:
            raise EditError(
                f"--as adapter with {self.name} in full: the change is of full rank",
                "Train an adapter with --lora-rank R, or pass --rank K to truncate what is found.",
            )
        return rule

    @override
    def plan(
        self, job: Job, edit: EditPlan | AdapterPlan, vector: Path, finished: bool
    ) -> SystemPlan:
        entries, rank, how = job.base.entries, self.lora_rank, self.training
        sizes = [entries[name].numel for name in job.names]
        if rank is not None:
            sizes = [rank * sum(entries[name].shape) for name in job.names]
        return SystemPlan(
            edit=edit,
            vector=str(vector),
            vector_bytes=4 * sum(sizes),
            finished=finished,
            settings=asdict(self.settings),
            examples=len(job.sets.examples),
            keep_examples=sum(len(each.examples) for each in job.sets.keep),
            matrices=len(job.names),
            trained=sum(sizes),
            weights=4 * sum(entry.numel for entry in entries.values()),
            # Gradients, two moments and frozen references; before and after, of whole matrices.
            **apart(
                job.device,
                4 * (3 + self.row.references) * sum(sizes),
                4 * (sum(entries[name].numel for name in job.names) + sum(sizes)),
            ),
            method=self.name,
            source=self.row.paper,
            steps=how.steps,
            epochs=how.epochs,
            learning_rate=how.learning_rate,
            batch_size=how.batch_size,
            lora_rank=rank,
            unseen_examples=sum(len(each.examples) for each in job.sets.unseen),
        )

    @override
    def kept_bytes(self, job: Job, trained: int) -> int:
        if not self.row.goes_on:
            return 0
        how, passes = self.training, len(job.sets.examples) / self.training.batch_size
        steps = math.ceil(how.epochs * math.ceil(passes)) if how.steps is None else how.steps
        # Helpers; weights and two moments, of a point and the one before it, or of the one that
        # a helper's training ends with.
        points = 6 if steps > how.save_every else 3 * bool(self.row.references)
        return 4 * trained * (self.row.references + points)

    def find(self, job: Job, run: Machine, workspace: Path) -> MethodResult:
        """See :class:`OnModel`.

        Raises:
            NonFiniteError: A loss or weight is NaN or infinite.
        """
        try:
            return super().find(job, run, workspace)
        except NonFiniteError as error:
            # Trainings are shared with commands whose options have other names.
            rate = "--lr or --set helper_rate" if hasattr(self.settings, "helper_rate") else "--lr"
            raise NonFiniteError(
                f"{self.name}: {error.what}",
                f"Lower {rate}, take fewer --steps, raise --warmup, or train with --precision"
                " float32 or bfloat16; at step 1, look for NaN in the checkpoint.",
            ) from None

    def change(
        self, job: Job, at: Loaded
    ) -> tuple[Mapping[str, torch.Tensor | LowRank], dict[str, Any]]:
        """See :class:`OnModel`.

        Raises:
            EditError: Nothing changed, or what was not to change.
        """
        made = self.row.change(
            ChangeRequest(
                at.model,
                job.tokenizer,
                tuple(at.held),
                job.sets.examples,
                [each for rows in job.sets.keep for each in rows.examples],
                [each for rows in job.sets.unseen for each in rows.examples],
                self.training,
                asdict(self.settings),
                self.lora_rank,
                job.chosen,
                at.run.progress,
                at.workspace,
            )
        )
        strays = [name for name in made.change if name not in at.held]
        if strays:
            raise EditError(
                f"{self.name} changed {strays[0]!r}, which is not among what may change",
                "Return changes of the request's names alone.",
            )
        if not any(_any(each) for each in made.change.values()):
            raise EditError(f"{self.name} changed nothing", "Raise --lr, or take more --steps.")
        return made.change, {"training": dict(made.notes)}

    @override
    def notices(self, job: Job, found: EditRecord) -> list[str]:
        notices = []
        if not found.summary[GUARD]["inside"]:
            notices.append(harm(found.summary[GUARD]))
        if job.sets.keep and not self.row.keeps(self.settings):
            notices.append(f"{self.name} does not look at --keep.")
        if job.sets.unseen and not self.row.needs_unseen:
            notices.append(f"{self.name} does not look at --unseen.")
        return notices


def _any(change: torch.Tensor | LowRank) -> bool:
    """Whether a change is one; NaN is, and is refused when it is saved."""
    return bool((change.S if isinstance(change, LowRank) else change).any())
