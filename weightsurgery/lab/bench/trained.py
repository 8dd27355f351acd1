"""The rows of the bench for systems that train on a loss of their own.

Settings of the loss are the published ones, but for RMU's, which go by the size of a model's hidden
states; the learning rates are not, since a model of a few million parameters needs others than one
of billions: each row has several, and the steps at which its training is looked at are shared out
among them. Every look is a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.errors import NonFiniteError
from weightsurgery.lab.bench.row import BUDGET, Candidate, Method
from weightsurgery.lab.bench.subject import Change, Subject
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners import UNLEARNERS, settings_of, train_unlearner

__all__ = ["TRAINED"]

_EVERY, _EVERY_LONG = 10, 40


def _candidates(
    name: str,
    rates: Sequence[float],
    variants: Sequence[Mapping[str, Any]] = ({},),
    helpers: bool = False,
    every: int = _EVERY,
) -> Callable[[Subject], Iterator[Candidate]]:
    """An unlearner, looked at after several steps for each of several learning rates.

    Args:
        name: One of :data:`UNLEARNERS`.
        rates: Learning rates.
        variants: Settings of its own that are not as published, with each rate; the budget is
            shared out among all of them.
        helpers: Whether it trains helper models, as the world's own fine-tunes are trained.
        every: Steps from one look to the next.
    """

    def candidates(subject: Subject) -> Iterator[Candidate]:
        stops = BUDGET // (len(rates) * len(variants))
        kind, tuning = UNLEARNERS[name], subject.tuning()
        helped = {"helper_steps": tuning.steps, "helper_rate": tuning.learning_rate}
        for settings, rate in product(variants, rates):
            own = {**settings, **helped} if helpers else settings
            snapshots: dict[int, Change] = {}

            def look(
                step: int,
                change: Callable[[], Mapping[str, Any]],
                kept: dict[int, Change] = snapshots,
            ) -> bool:
                if step % every == 0:
                    kept[step] = _dense(change())
                return False

            # Ascent has no floor; what was reached before it ends in NaN counts.
            with suppress(NonFiniteError):
                found = train_unlearner(
                    kind, subject.model, subject.tokenizer, subject.forget, subject.seen_facts,
                    Training(
                        steps=every * stops,
                        learning_rate=rate,
                        batch_size=subject.recipe.tuning_batch,
                    ),
                    settings_of(kind, own),
                    unseen=subject.news, look=look,
                )  # fmt: skip
                snapshots[found.trained.steps] = _dense(found.change)
            for step, change in snapshots.items():
                yield Candidate({**settings, "learning_rate": rate, "steps": step}, change)

    return candidates


def _until_strange(rates: Sequence[float]) -> Callable[[Subject], Iterator[Candidate]]:
    """KUL by its own rule: one candidate for each learning rate, where the rule ends it."""

    def candidates(subject: Subject) -> Iterator[Candidate]:
        kind = UNLEARNERS["kul"]
        for rate in rates:
            training = Training(
                epochs=kind.published.epochs,
                learning_rate=rate,
                batch_size=subject.recipe.tuning_batch,
            )
            with suppress(NonFiniteError):
                found = train_unlearner(
                    kind, subject.model, subject.tokenizer, subject.forget, (), training,
                    settings_of(kind), unseen=subject.news,
                )  # fmt: skip
                setting = {"learning_rate": rate, "steps": found.trained.steps}
                yield Candidate(setting, _dense(found.change))

    return candidates


def _dense(change: Mapping[str, Any]) -> Change:
    return {n: t.matrix() if isinstance(t, LowRank) else t for n, t in change.items()}


# The first is what gradient ascent was always measured with; most others end there at its edge.
_ASCENT, _RATES = (1e-4, 3e-4), (3e-5, 1e-4)

TRAINED: Mapping[str, Method] = {
    "gradient-ascent": Method("trained on −CE(forget)", _candidates("gradient-ascent", _ASCENT)),
    "gradient-difference": Method(
        "trained on −CE(forget) + CE(keep)", _candidates("gradient-difference", _ASCENT), "facts"
    ),
    "kul": Method(
        "gradient ascent until MA is under that of facts of another world",
        _until_strange((2e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4)),
    ),
    "npo": Method("NPO, β=0.1", _candidates("npo", _RATES)),
    "npo-gdr": Method(
        "NPO, β=0.1, + CE(keep)", _candidates("npo", _RATES, [{"retain": "gdr"}]), "facts"
    ),
    "npo-klr": Method(
        "NPO, β=0.1, + KL(base‖model) on keep",
        _candidates("npo", _RATES, [{"retain": "klr"}]),
        "facts",
    ),
    "simnpo": Method("SimNPO, β=4.5, δ=0, + CE(keep)", _candidates("simnpo", _ASCENT), "facts"),
    "kga": Method(
        "knowledge-gap alignment, unseen data of another world",
        _candidates("kga", _RATES, helpers=True),
        "facts",
    ),
    "eul": Method(
        "EUL (reconstruction): LoRA of rank 16 beside all linear layers",
        _candidates("eul", (3e-4, 1e-3)),
        "facts",
    ),
    "au": Method(
        "generic labels of a reinforced model (AU), no dictionary",
        _candidates("au", (3e-4, 1e-3), helpers=True),
    ),
    "rmu": Method(
        "RMU: states of the middle layer steered to c = 300, five times their size",
        _candidates("rmu", (3e-3,), [{"coefficient": 300.0, "alpha": a} for a in (10.0, 100.0)]),
        "facts",
    ),
    # The same rates and as many looks, four times as far apart.
    "npo-gdr-long": Method(
        "npo-gdr, up to 160 steps",
        _candidates("npo", _RATES, [{"retain": "gdr"}], every=_EVERY_LONG),
        "facts",
    ),
    "eul-long": Method(
        "eul, up to 160 steps", _candidates("eul", (3e-4, 1e-3), every=_EVERY_LONG), "facts"
    ),
}
