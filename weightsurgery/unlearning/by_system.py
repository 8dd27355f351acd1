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
from weightsurgery.learning.sharding import total
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.unlearning.job import Job, Machine
from weightsurgery.unlearning.method import GUARD, Loaded, OnModel
from weightsurgery.unlearning.methods import system
from weightsurgery.unlearning.plan import SystemPlan, apart
from weightsurgery.unlearning.saving import MethodResult
from weightsurgery.unlearning.shared_plan import Shares, shared_memory
from weightsurgery.unlearning.system import ChangeRequest, System
from weightsurgery.vectors.lora_files import AdapterPlan

__all__ = ["BySystem", "MethodSettings"]


@dataclass(frozen=True)
class MethodSettings:
    """A method of ``ws unlearn`` and how it trains.

    Attributes:
        method: A name of :data:`weightsurgery.unlearning.methods.METHODS`.
        settings: Settings of the method, by name; the others are as published.
        training: Fields of :class:`~weightsurgery.learning.settings.Training`, likewise.
        lora_rank: Train a LoRA adapter of this rank; None for the method's way.
        rank: Truncate the change by this rule; None for as it is.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    rank: RankRule | None = None

    def trained(self, system: type[System]) -> Training:
        """The published training with what is given; given epochs replace published steps."""
        given = dict(self.training)
        if given.get("epochs") is not None and given.get("steps") is None:
            given["steps"] = None
        return replace(system.published, **given)


@dataclass(frozen=True)
class BySystem(OnModel):
    """Forget by a system.

    Attributes:
        name: Name of the system.
        system: Its class.
        settings: Its settings, a ``system.Settings``.
        training: How it trains.
        lora_rank: Of the adapter that is trained, if one is.
    """

    name: str
    system: type[System]
    settings: Any
    training: Training
    lora_rank: int | None
    distributed = True
    allow_harm = True  # with a notice: these are for comparison

    @classmethod
    def of(cls, method_settings: MethodSettings) -> BySystem:
        """A system with its settings.

        Raises:
            EditError: There is none of this name, or settings that make no sense.
        """
        name, lora_rank = method_settings.method, method_settings.lora_rank
        kind = system(name)
        settings = settings_of(kind, method_settings.settings)
        training = method_settings.trained(kind)
        if lora_rank is not None and lora_rank < 1:
            raise EditError(f"LoRA rank {lora_rank}", "Give a whole number from 1.")
        if lora_rank is not None and not kind.takes_rank:
            raise EditError(f"{name} as a LoRA adapter", "Leave out --lora-rank.")
        rank = lora_rank if lora_rank is not None else kind.adapter_rank
        return cls(name, kind, settings, training, rank)

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
            "source": self.system.paper,
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
            EditError: Some of it is missing.
        """
        system, settings = self.system, self.settings
        if system.keeps(settings) and not keep:
            instead = ", or a λ of your own with --set scale=0.5" * (
                hasattr(settings, "scale") and not system.keeps(replace(settings, scale=1.0))
            )
            raise EditError(
                f"{self.name} without data to keep, which it works on",
                f"Give --keep FILE{instead}.",
            )
        if system.needs_unseen and not unseen:
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
        entries, rank, training = job.base.entries, self.lora_rank, self.training
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
            keep_examples=sum(len(dataset.examples) for dataset in job.sets.keep),
            matrices=len(job.names),
            trained=sum(sizes),
            weights=4 * sum(entry.numel for entry in entries.values()),
            # Gradients, two moments and frozen references; before and after, of whole matrices.
            **apart(
                job.device,
                4 * (3 + self.system.references) * sum(sizes),
                4 * (sum(entries[name].numel for name in job.names) + sum(sizes)),
            ),
            shared=shared_memory(
                entries,
                # Besides the frozen references, the values before.
                Shares(job.names, rank, self.system.references + (rank is None)),
            ),
            method=self.name,
            source=self.system.paper,
            steps=training.steps,
            epochs=training.epochs,
            learning_rate=training.learning_rate,
            batch_size=training.batch_size,
            lora_rank=rank,
            unseen_examples=sum(len(dataset.examples) for dataset in job.sets.unseen),
        )

    @override
    def shares_steps(self, job: Job) -> bool:
        return True

    @override
    def resume_bytes(self, job: Job, trained: int) -> int:
        if not self.system.goes_on:
            return 0
        training, steps = self.training, self.training.steps
        if steps is None:
            steps = math.ceil(
                training.epochs * math.ceil(len(job.sets.examples) / training.batch_size)
            )
        # Helpers; weights and two moments, of a point and the one before it, or of the one that
        # a helper's training ends with.
        points = 6 if steps > training.save_every else 3 * bool(self.system.references)
        return 4 * trained * (self.system.references + points)

    def find(self, job: Job, machine: Machine, workspace: Path) -> MethodResult:
        """See :class:`OnModel`.

        Raises:
            NonFiniteError: A loss or weight is NaN or infinite.
        """
        try:
            return super().find(job, machine, workspace)
        except NonFiniteError as error:
            # Trainings are shared with commands whose options have other names.
            rate = "--lr or --set helper_rate" if hasattr(self.settings, "helper_rate") else "--lr"
            raise NonFiniteError(
                f"{self.name}: {error.what}",
                f"Lower {rate}, take fewer --steps, raise --warmup, or train with --precision"
                " float32 or bfloat16; at step 1, look for NaN in the checkpoint.",
            ) from None

    def change(
        self, job: Job, loaded: Loaded
    ) -> tuple[Mapping[str, torch.Tensor | LowRank], dict[str, Any]]:
        """See :class:`OnModel`.

        Raises:
            EditError: Nothing changed, or what was not to change.
        """
        result = self.system.change(
            ChangeRequest(
                loaded.model,
                job.tokenizer,
                tuple(loaded.stored),
                job.sets.examples,
                [example for rows in job.sets.keep for example in rows.examples],
                [example for rows in job.sets.unseen for example in rows.examples],
                self.training,
                asdict(self.settings),
                self.lora_rank,
                job.chosen,
                loaded.machine.progress,
                loaded.workspace,
            )
        )
        strays = [name for name in result.change if name not in loaded.stored]
        if strays:
            raise EditError(
                f"{self.name} changed {strays[0]!r}, which is not among what may change",
                "Return changes of the request's names alone.",
            )
        if not any(_any(change) for change in result.change.values()):
            raise EditError(f"{self.name} changed nothing", "Raise --lr, or take more --steps.")
        return result.change, {"training": dict(result.notes)}

    @override
    def notices(self, job: Job, record: EditRecord) -> list[str]:
        notices = []
        if not record.summary[GUARD]["inside"]:
            notices.append(harm(record.summary[GUARD]))
        if job.sets.keep and not self.system.keeps(self.settings):
            notices.append(f"{self.name} does not look at --keep.")
        if job.sets.unseen and not self.system.needs_unseen:
            notices.append(f"{self.name} does not look at --unseen.")
        return notices


def _any(change: torch.Tensor | LowRank) -> bool:
    """Whether a change is one; NaN is, and is refused when it is saved."""
    return bool(total((change.S if isinstance(change, LowRank) else change) != 0))
