"""By neighbours: answer as a model that never knew, and stay unchanged on similar data.

The default of ``ws project`` and ``ws learn`` for data sets; see
:mod:`weightsurgery.learning.forget`, which does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from typing_extensions import override

from weightsurgery.algebra.lowrank import LowRank, Rank, RankRule
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import EditError, HarmError
from weightsurgery.learning.forget import ByNeighbours, change_by_neighbours
from weightsurgery.learning.models import load_model
from weightsurgery.unlearning.by_search import BySearch
from weightsurgery.unlearning.job import Job
from weightsurgery.unlearning.method import Loaded

__all__ = ["Neighbours"]


@dataclass(frozen=True)
class Neighbours(BySearch):
    """Forget or learn by neighbours, with the search's settings for those."""

    packages = ("peft",)

    @property
    def settings(self) -> ByNeighbours:
        """The settings for neighbours."""
        assert self.search.neighbours is not None
        return self.search.neighbours

    @override
    def described(self, job: Job) -> dict[str, Any]:
        return {"method": "neighbours", **self.search.described()}

    def factors(self, job: Job) -> RankRule:
        """See :class:`Method`: the change is trained in factors."""
        return job.rank or Rank(self.settings.change_rank)

    def check(self, job: Job) -> None:
        """Refuse what it cannot keep or validate on.

        Raises:
            EditError: Vectors or statistics to keep, or validation data.
        """
        other, keep = "learn" if job.learning else "strangers", job.keep
        if keep.vectors or keep.inputs:
            label = keep.vectors[0].label if keep.vectors else keep.inputs[0].label
            raise EditError(
                f"--keep {label}: --objective neighbours keeps data sets, by what the model says of"
                " them",
                f"Keep a data set, or pass --objective {other}, which trains outside the span of"
                " vectors and statistics.",
            )
        if job.sets.watching:
            raise EditError(
                "validation data with --objective neighbours, which ends by what it sees itself",
                f"Leave it out, or pass --objective {other}.",
            )

    @property
    @override
    def gentler(self) -> str:
        return "Keep more data" if self.settings.take_back else super().gentler

    def change(
        self, job: Job, loaded: Loaded
    ) -> tuple[Mapping[str, torch.Tensor | LowRank], dict[str, Any]]:
        """See :class:`OnModel`.

        Raises:
            HarmError: No change inside the budget forgets, or learns, anything.
        """
        search, learning = self.search, job.learning
        result = change_by_neighbours(
            loaded.model,
            job.tokenizer,
            job.sets.examples,
            [dataset.examples for dataset in job.sets.keep],
            list(loaded.stored),
            replace(self.settings, training=replace(self.settings.training, budget=search.budget)),
            learning=learning,
            never_knew=None if job.never_knew is None else partial(_loaded, job.never_knew, loaded),
            language=None if loaded.guard is None else loaded.guard.divergence,
            workspace=loaded.workspace,
            progress=loaded.machine.progress,
        )
        first, last = result.looks[0], result.chosen or result.looks[-1]
        gained = last.known - first.known if learning else first.known - last.known
        if not search.allow_harm and (result.chosen is None or gained <= 0):
            steps = f"after {result.looks[-1].step} steps "
            more = "Take more --steps, raise"
            if self.settings.take_back:
                steps, more = "", "Raise"
            raise HarmError(
                f"nothing was {'learned' if learning else 'forgotten'} inside the budget of"
                f" {search.budget:g} nats a token: {steps}the truth is the likeliest answer at"
                f" {result.looks[-1].known:.0%} of its places ({first.known:.0%} before), and"
                f" ordinary language has moved by {result.looks[-1].language:.3g}",
                f"{more} --budget if that much is bearable, or pass --allow-harm"
                " to write it all the same.",
            )
        trained = [
            {"first_loss": each.first_loss, "last_loss": each.last_loss}
            for each in (result.trained,)
            if each is not None
        ]
        looks = [{k: v for k, v in asdict(look).items() if k != "left"} for look in result.looks]
        return result.change, {
            "rounds": trained,
            "watched": [],
            "looks": looks,
            "steps": last.step if trained else 0,
            "gathered": result.notes,
        }

    @override
    def notices(self, job: Job, record: EditRecord) -> list[str]:
        steps, looks = record.summary["steps"], record.summary["looks"]
        look = next((each for each in looks if steps and each["step"] == steps), looks[-1])
        if job.learning and look["known"] < 0.99:
            return [
                f"At {1 - look['known']:.0%} of the places where it was to be learned the truth is"
                " not yet what is said: take more --steps, or a larger --budget."
            ]
        if not job.learning and look["known"] > 0.01:
            more = "" if self.settings.take_back else "more --steps, or "
            return [
                f"At {look['known']:.0%} of the places where the truth would be said it is still"
                f" the likeliest answer: take {more}a larger --budget."
            ]
        return []


def _loaded(checkpoint: Checkpoint, beside: Loaded) -> Any:
    """A model beside the one that is changed."""
    return load_model(checkpoint.beside(), str(beside.model.device))[0]
