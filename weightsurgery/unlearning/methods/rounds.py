"""In rounds: train outside the input space of what is to stay, and validate, repeatedly.

What ``ws project`` and ``ws learn`` do for data sets with objective ``strangers``, ``negate`` or
``learn``; see :mod:`weightsurgery.learning.rounds`, which does it.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from weightsurgery.algebra.discriminate import KeepSpace
from weightsurgery.algebra.lowrank import LowRank, RankRule
from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.errors import DataError, EditError
from weightsurgery.learning.keep_span import Kept
from weightsurgery.learning.rounds import find_change
from weightsurgery.learning.sharding import total
from weightsurgery.learning.watch import Rule, Watch
from weightsurgery.surgery.workers import torch_threads
from weightsurgery.unlearning.by_search import BySearch, Search
from weightsurgery.unlearning.job import Job
from weightsurgery.unlearning.method import Loaded
from weightsurgery.vectors.statistics import total_gram

__all__ = ["InRounds"]

# A loss that is still above this share of the first is worth a notice.
_LITTLE = 0.5


@dataclass(frozen=True)
class InRounds(BySearch):
    """Forget or learn in rounds, with the search's settings for those."""

    @override
    def described(self, job: Job) -> dict[str, Any]:
        return {"method": "rounds from data", **self.search.described()}

    @override
    def factors(self, job: Job) -> RankRule:
        if job.rank is None:
            raise EditError(
                "--as adapter with data: the change that is trained is of full rank",
                "Pass --rank K (or --energy E) to truncate it; what that loses is reported.",
            )
        return job.rank

    def check(self, job: Job) -> None:
        """Refuse a job from which no statistics of inputs can be gathered.

        Raises:
            EditError: No data to keep and no prompts.
        """
        if not job.sets.keep and not self.search.rounds.prompts:
            raise EditError(
                "no data to keep and no prompts: nothing says what inputs look like",
                "Give data with --keep, or leave out --prompts 0.",
            )

    def change(
        self, job: Job, loaded: Loaded
    ) -> tuple[Mapping[str, torch.Tensor | LowRank], dict[str, Any]]:
        """See :class:`OnModel`.

        Raises:
            EditError: Nothing was found.
        """
        result = find_change(
            loaded.model,
            job.tokenizer,
            job.sets.examples,
            _keep(job, loaded.stored, self.search),
            self.search.rounds,
            selection=Selection("all", tuple(glob.escape(name) for name in loaded.stored)),
            watch=_watch(job, self.search),
            progress=loaded.machine.progress,
        )
        if not any(bool(total(change != 0)) for change in result.change.values()):
            done = "taught" if job.learning else "forgot"
            raise EditError(
                f"nothing was found: no look {done} anything and left every validation set at"
                f" {self.search.threshold:.1%} of its accuracy",
                "If a set suffered, lower --lr or --epsilon or keep more data; if nothing moved,"
                " take more --steps or --rounds.",
            )
        return result.change, {
            "rounds": [{"first_loss": first, "last_loss": last} for first, last in result.losses],
            "watched": [_look(scores) for scores in result.watched],
        }

    @override
    def notices(self, job: Job, record: EditRecord) -> list[str]:
        notices, rounds = [], record.summary["rounds"]
        first, last = rounds[0]["first_loss"], rounds[-1]["last_loss"]
        if self.search.objective != "negate" and last > _LITTLE * first:
            notices.append(
                f"The loss hardly fell ({first:.3g} to {last:.3g}): take more --steps, or leave"
                " more room with a larger --epsilon or, keeping vectors, a smaller --keep-rank."
            )
        if not (job.sets.keep or job.keep.vectors or job.keep.inputs):
            notices.append(
                "Nothing was named to keep: texts of random words stood for it. What must stay is"
                " safer named with --keep."
            )
        return notices


def _keep(job: Job, stored: Mapping[str, str], search: Search) -> Kept:
    base, statistics = job.base, job.keep.inputs

    def gram(parameter: str) -> torch.Tensor | None:
        name = stored[parameter]
        return total_gram(statistics, name, input_width(base, name)) if statistics else None

    directions = {}
    with torch_threads(1):
        for parameter, name in stored.items():
            basis = _directions(job, name, search)
            if basis is not None:
                directions[parameter] = basis
    return Kept([dataset.examples for dataset in job.sets.keep], directions, gram)


def _directions(job: Job, name: str, search: Search) -> torch.Tensor | None:
    """Input directions of the vectors to keep, ``(n, q)``; None where none changes the matrix."""
    base, entry = job.base, job.base.entry(name)
    factors = []
    for vector in job.keep.vectors:
        delta = vector.at(name)
        if delta is None:
            continue
        truncation = delta.truncated(
            lambda start, stop: base.rows(name, start, stop),
            (entry.shape[0], entry.shape[1]),
            search.keep_rank,
            transposed=is_transposed(name, base.config),
            device=job.device,
            seed=search.seed,
        )
        factors.append(truncation.factors)
    return KeepSpace.of(factors).V if factors else None


class _KnownBefore(Watch):
    """A watch that refuses validation data that the base does not know."""

    def begin(self, model: Any, tokenizer: Any, names: Sequence[str]) -> None:
        """See :class:`Watch`.

        Raises:
            DataError: The base knows nothing of a validation set, or all of what to learn.
        """
        super().begin(model, tokenizer, names)
        for name, known in self.history[0].items():
            if known == 0 and (name or not self.learning):
                what = name or "the data to forget"
                raise DataError(
                    f"{what}: the base answers none of it, so there is nothing to watch",
                    "Watch what the base knows; a completion may lack the space before it.",
                )
        if self.learning and self.history[0][""] == 1:
            raise DataError("the data to learn: the base knows all of it", "Learn something new.")


def _watch(job: Job, search: Search) -> Watch | None:
    if not job.sets.watching:
        return None
    sets, rounds = job.sets, search.rounds
    target = sets.validation_target[0].examples if sets.validation_target else sets.examples
    # So that the last step of a round is looked at, and not every one.
    every = next((n for n in (10, 9, 8, 7, 6, 5) if rounds.steps % n == 0), min(10, rounds.steps))
    return _KnownBefore(
        target,
        {dataset.name: dataset.examples for dataset in sets.validation_keep},
        Rule(search.threshold),
        rounds.steps if rounds.objective == "negate" else every,
        search.learning,
    )


def _look(scores: Mapping[str, float]) -> dict[str, Any]:
    """The watch's scores at a step, for the record; step 0 is before training."""
    keep = {name: value for name, value in scores.items() if name not in ("", "step")}
    return {"step": int(scores.get("step", 0)), "target": scores[""], "keep": keep}
