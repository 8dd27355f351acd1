"""Options of ``ws project`` and ``ws learn`` where what to forget or learn is a data set."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from weightsurgery.cli.helped import among
from weightsurgery.cli.options import written_path
from weightsurgery.cli.panels import panel
from weightsurgery.cli.spread import given, option_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightsurgery.algebra.lowrank import RankRule
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.unlearning.by_search import Search

__all__ = ["FromData"]

_option = panel("From data sets")

# As measured: many short rounds for an objective that projects a finished vector.
_NEGATE = {"rounds": 12, "steps": 10}
_TAKEN_BACK = 32  # rank of a change in closed form
_OF_TRAINING = ("learning_rate", "batch_size", "keep_weight", "draws")  # refused beside it

# The options that not every objective has, by those that do.
_ROUNDS = ("rounds", "prompts", "threshold", "validation_keep", "validation_target")
_KNOWN = {
    "neighbours": (
        "wordings",
        "neighbours",
        "keep_weight",
        "lora_rank",
        "draws",
        "whole_answers",
        "never_knew",
    ),
    "strangers": (*_ROUNDS, "draws"),
    "negate": (*_ROUNDS, "round_scale"),
    "learn": _ROUNDS,
}
_FORGETS, _LEARNS = ("neighbours", "strangers", "negate"), ("neighbours", "learn")


@dataclass(frozen=True)
class FromData:
    """How a change is trained where what to forget or learn is a data set."""

    objective: Annotated[
        str | None,
        _option(
            autocompletion=among(*_KNOWN),
            help="neighbours (answer as one who never knew, and stay as one is about everything"
            " alike; default), strangers (train where keep inputs hardly feel it; default with"
            " --keep VECTOR, or an option that it has and neighbours has not) or negate (UNLEARN's"
            " three steps). 'ws learn': neighbours or learn (likewise, where keep inputs hardly"
            " feel it).",
        ),
    ] = None
    rounds: Annotated[
        int | None,
        _option(help="Times to gather, train and apply, for strangers (1) and negate (12)."),
    ] = None
    steps: Annotated[
        int | None,
        _option(
            help="Training steps. Default: 40, more for large requests, twice as many to learn, and"
            " again up to twice where they are not enough; strangers: 80; negate: 10 each round."
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        _option(
            "--batch",
            help="Examples per step. Default: 12, and what is to stay beside them; others: 64.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        _option(
            "--lr",
            help="Learning rate of AdamW. Default: 1.5e-3, 2e-3 to learn; strangers: 0.4, relative"
            " to the size of a weight's entries.",
        ),
    ] = None
    draws: Annotated[
        int | None,
        _option(
            help="Neighbours that a target is the mean of (16), or strangers asked for each"
            " example (2)."
        ),
    ] = None
    prompts: Annotated[
        int | None,
        _option(
            help="Made-up prompts that protect what no file lists, for strangers and negate; also"
            " for --keep DATA with a vector. Default: 2000; 0 for none."
        ),
    ] = None
    round_scale: Annotated[
        float | None,
        _option(metavar="λ", help="Scale of each round's vector, for negate. Default: 32."),
    ] = None
    wordings: Annotated[
        int | None,
        _option(help="Other wordings that the model is to find for the request. Default: 6."),
    ] = None
    neighbours: Annotated[
        int | None,
        _option(help="Other subjects of the same kind that the model is to name. Default: 120."),
    ] = None
    whole_answers: Annotated[
        bool,
        _option(
            help="Forget long answers (over 12 tokens) word by word, not where they begin. It takes"
            " longer, and ordinary language suffers more: see --budget."
        ),
    ] = False
    never_knew: Annotated[
        str | None,
        _option(
            metavar="CKPT",
            help="The checkpoint that this one was tuned from, before it was taught what is to be"
            " forgotten. What the matrices learned of it is taken back; then the last third of them"
            " is trained to be as sure of what is said instead as of strangers. With --steps any"
            " that never knew will do: a change is trained towards its predictions, all along"
            " every answer.",
        ),
    ] = None
    keep_weight: Annotated[
        float | None,
        _option(
            help="Weight of what is to stay beside what is to go. Default: 60; 100 with"
            " --whole-answers or --never-knew; 10 to learn."
        ),
    ] = None
    lora_rank: Annotated[
        int | None,
        _option(
            help="Rank of the change, for neighbours. Default: 16; 32 if taken back, and 16"
            " more of the last third."
        ),
    ] = None
    budget: Annotated[
        float | None,
        _option(
            metavar="NATS",
            help="Divergence that ordinary language may suffer, in nats a token. Default: 0.01.",
        ),
    ] = None
    allow_harm: Annotated[bool, _option(help="Write the edit though it goes over the budget.")] = (
        False
    )
    validation_keep: Annotated[
        list[str] | None,
        _option(
            metavar="FILE",
            help="Data to look at that --keep does not hold: ends the training, and the best"
            " weights so far count; repeatable.",
        ),
    ] = None
    validation_target: Annotated[
        str | None,
        _option(
            "--validation-forget",
            "--validation-task",
            metavar="FILE",
            help="What is to be forgotten or learned, to look at. Default: all of it.",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        _option(
            help="Share of its accuracy that each --validation-keep must keep. Default: 0.975."
        ),
    ] = None
    vector: Annotated[
        str | None,
        _option(
            metavar="DIR",
            help="Where the vector is saved. Default: OUT.vector.",
            callback=written_path,
        ),
    ] = None

    def chosen(self, learning: bool, keep_vectors: bool) -> tuple[str, str]:
        """The objective, and why where an option alone chose it, in words.

        Args:
            learning: For ``ws learn``.
            keep_vectors: Whether vectors or statistics are to be kept.
        """
        default, other = (_LEARNS if learning else _FORGETS)[:2]
        if self.objective is not None:
            return self.objective, ""
        if keep_vectors:
            return other, ""
        foreign = self._foreign(default)
        if not foreign or self._foreign(other):
            return default, ""
        names = " and ".join(f"{option_of(FromData, name)}" for name in foreign)
        verb = "is an option" if len(foreign) == 1 else "are options"
        return other, f"--objective {other}: {names} {verb} of it, and not of {default}."

    def search(
        self,
        learning: bool,
        objective: str,
        epsilon: float | None,
        seed: int,
        rank: RankRule | None,
        keep_rank: RankRule,
    ) -> Search:
        """As the library's settings.

        Args:
            learning: For ``ws learn``.
            objective: See :meth:`chosen`.
            epsilon: Ridge of statistics.
            seed: Of every draw.
            rank: Truncate the trained change.
            keep_rank: Factors of each vector to keep.

        Raises:
            EditError: Options that do not go together.
        """
        from weightsurgery.errors import EditError
        from weightsurgery.learning.guard import BUDGET
        from weightsurgery.learning.rounds import Rounds
        from weightsurgery.suggestions import one_of
        from weightsurgery.unlearning.by_search import Search

        allowed = _LEARNS if learning else _FORGETS
        if objective not in allowed:
            raise EditError(
                f"--objective {objective} with 'ws {'learn' if learning else 'project'}'",
                one_of(objective, allowed),
            )
        self._check(objective, allowed)
        if learning and (self.whole_answers or self.never_knew):
            name = "--whole-answers" if self.whole_answers else "--never-knew"
            raise EditError(
                f"{name} with 'ws learn', which learns answers whole, as they are given",
                "Leave it out.",
            )
        guarded: dict[str, Any] = {
            "rank": rank,
            "keep_rank": keep_rank,
            "threshold": 0.975 if self.threshold is None else self.threshold,
            "budget": BUDGET if self.budget is None else self.budget,
            "allow_harm": self.allow_harm,
        }
        if objective == "neighbours":
            if epsilon is not None:
                raise EditError(
                    "--epsilon with objective neighbours, which has no ridge",
                    f"Leave it out, or pass --objective {allowed[1]}.",
                )
            rounds = Rounds("learn", seed=seed) if learning else Rounds(seed=seed)
            return Search(rounds, self._by_neighbours(seed, learning), **guarded)
        chosen: dict[str, Any] = dict(_NEGATE) if objective == "negate" else {}
        chosen = chosen | self._given(Rounds) | ({} if epsilon is None else {"epsilon": epsilon})
        return Search(Rounds(**{**chosen, "objective": objective, "seed": seed}), **guarded)

    def _by_neighbours(self, seed: int, learning: bool) -> ByNeighbours:
        from weightsurgery.learning.forget import ByNeighbours
        from weightsurgery.learning.forgetting import LEARNING, WHOLE, Forgetting
        from weightsurgery.learning.sureness import SURE

        whole = self.whole_answers or self.never_knew is not None
        take_back = self.never_knew is not None and self.steps is None
        if take_back:
            self._refuse_training()
        training = LEARNING if learning else WHOLE if whole else Forgetting()
        training = SURE if take_back else training
        training = replace(training, **{**self._given(Forgetting), "seed": seed})
        settings = self._given(ByNeighbours) | ({"rank": _TAKEN_BACK} if take_back else {})
        rank = {} if self.lora_rank is None else {"rank": self.lora_rank}
        return ByNeighbours(training, **{**settings, **rank, "take_back": take_back})

    def _refuse_training(self) -> None:
        from weightsurgery.errors import EditError

        for name in _OF_TRAINING:
            if name in given(self):
                raise EditError(
                    f"{option_of(FromData, name)} with --never-knew and without --steps: what was"
                    " taught is taken back in closed form",
                    "Leave it out, or give --steps N to train towards what the other model says.",
                )

    def _given(self, kind: type) -> dict[str, Any]:
        """The given options that are fields of a settings class, by name."""
        values, names = given(self), sorted(field.name for field in fields(kind))
        return {name: values[name] for name in names if name in values}

    def _check(self, objective: str, allowed: Sequence[str]) -> None:
        """Refuse options of other objectives."""
        from weightsurgery.errors import EditError

        for name in self._foreign(objective):
            others = [other for other in allowed if name in _KNOWN[other]]
            more = f", or pass --objective {' or '.join(others)}" if others else ""
            raise EditError(
                f"{option_of(FromData, name)} with objective {objective}, which has none",
                f"Leave it out{more}.",
            )
        if self.threshold is not None and not self.validation_keep:
            raise EditError(
                "--threshold without --validation-keep, which it is a share of",
                "Give --validation-keep FILE.",
            )

    def _foreign(self, objective: str) -> list[str]:
        """Options that were given, and that an objective does not have."""
        every = {name for names in _KNOWN.values() for name in names}
        foreign = sorted(every - set(_KNOWN[objective]))
        return [name for name in foreign if name in given(self)]

    def refuse_with_vectors(self, keeps_data: bool) -> None:
        """Refuse options that say how to train, where nothing is trained.

        Raises:
            EditError: With the first of them.
        """
        from weightsurgery.errors import EditError

        for name in given(self):
            if not (name == "prompts" and keeps_data):
                raise EditError(
                    f"{option_of(FromData, name)} with a vector: it says how to train on data",
                    "Leave it out, or give a data set instead of the vector.",
                )
