"""The rows of the bench for the survey's systems, of the grids and points that they name.

A system that merges offers eight points of its lines of changes, as every method has eight
candidates, and the bench chooses among them by its own rule. Of the published recipe for λ that
leaves the grid: of its 21 scales there are eight, and what must be left of the control is the
bench's threshold, which holds for all methods alike, instead of 95 %. (``ws unlearn`` follows the
recipe as it stands.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from itertools import product
from typing import Any

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.errors import NonFiniteError
from weightsurgery.lab.bench.chosen import BUDGET, BenchMethod, Candidate
from weightsurgery.lab.bench.subject import Change, Subject
from weightsurgery.learning.in_context import Icul
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning.by_loss import LONG, BenchGrid, ByLoss
from weightsurgery.unlearning.merging import ByMerging, find_line
from weightsurgery.unlearning.methods import SYSTEMS
from weightsurgery.unlearning.system import ChangeRequest

__all__ = ["MERGING", "PROMPTED", "TRAINED"]


def _looked_at(kind: type[ByLoss], grid: BenchGrid) -> Callable[[Subject], Iterator[Candidate]]:
    """An unlearner; its candidates are snapshots of a training at each learning rate.

    Helper models are trained as the world's own fine-tunes are.
    """

    def candidates(subject: Subject) -> Iterator[Candidate]:
        stops = BUDGET // (len(grid.rates) * len(grid.settings))
        tuning = subject.tuning()
        helper_settings = {"helper_steps": tuning.steps, "helper_rate": tuning.learning_rate}
        helpers = "helper_steps" in {option.name for option in fields(kind.Settings)}
        for settings, rate in product(grid.settings, grid.rates):
            method_settings = {**settings, **helper_settings} if helpers else settings
            snapshots: dict[int, Change] = {}

            def look(
                step: int,
                change: Callable[[], Mapping[str, Any]],
                changes: dict[int, Change] = snapshots,
            ) -> bool:
                if step % grid.every == 0:
                    changes[step] = _dense(change())
                return False

            # Ascent has no floor; what was reached before it ends in NaN counts.
            with suppress(NonFiniteError):
                result = train_unlearner(
                    kind, subject.model, subject.tokenizer, subject.forget, subject.seen_facts,
                    Training(
                        steps=grid.every * stops,
                        learning_rate=rate,
                        batch_size=subject.recipe.tuning_batch,
                    ),
                    settings_of(kind, method_settings),
                    unseen=subject.new_facts, look=look,
                )  # fmt: skip
                snapshots[result.trained.steps] = _dense(result.change)
            for step, change in snapshots.items():
                yield Candidate({**settings, "learning_rate": rate, "steps": step}, change)

    return candidates


def _ended(kind: type[ByLoss], grid: BenchGrid) -> Callable[[Subject], Iterator[Candidate]]:
    """An unlearner by its own rule: a candidate for each learning rate, where the rule ends it."""

    def candidates(subject: Subject) -> Iterator[Candidate]:
        for rate in grid.rates:
            training = Training(
                epochs=kind.published.epochs,
                learning_rate=rate,
                batch_size=subject.recipe.tuning_batch,
            )
            with suppress(NonFiniteError):
                result = train_unlearner(
                    kind, subject.model, subject.tokenizer, subject.forget, (), training,
                    settings_of(kind), unseen=subject.new_facts,
                )  # fmt: skip
                setting = {"learning_rate": rate, "steps": result.trained.steps}
                yield Candidate(setting, _dense(result.change))

    return candidates


def _dense(change: Mapping[str, Any]) -> Change:
    return {n: t.matrix() if isinstance(t, LowRank) else t for n, t in change.items()}


def _row(kind: type[ByLoss], grid: BenchGrid) -> BenchMethod:
    keeps = kind.keeps(settings_of(kind, grid.settings[0]))
    candidates = (_ended if grid.ends_itself else _looked_at)(kind, grid)
    return BenchMethod(grid.about, candidates, "facts" if keeps else "nothing")


_GRIDS = [
    (kind, grid) for kind in SYSTEMS.values() if issubclass(kind, ByLoss) for grid in kind.bench
]

# Those that are trained longer come last.
TRAINED: Mapping[str, BenchMethod] = {
    grid.label or kind.name: _row(kind, grid)
    for kind, grid in sorted(_GRIDS, key=lambda row: row[1].every == LONG)
}


def _merging_row(kind: type[ByMerging]) -> BenchMethod:
    def candidates(subject: Subject) -> Iterator[Candidate]:
        keep = subject.seen_facts if kind.needs_keep else []
        for points in kind.bench:
            tuning = subject.tuning()
            training = replace(tuning, learning_rate=points.rate * tuning.learning_rate)
            request = ChangeRequest(
                subject.model, subject.tokenizer, tuple(subject.names), subject.forget, keep,
                training=training, settings=points.settings,
            )  # fmt: skip
            line = find_line(kind, request)
            for scale in points.scales:
                setting = {"learning_rate": training.learning_rate, **points.settings}
                yield Candidate({**setting, "scale": scale}, line.at(scale))

    return BenchMethod(kind.about, candidates, "facts" if kind.needs_keep else "nothing")


MERGING: Mapping[str, BenchMethod] = {
    name: _merging_row(kind) for name, kind in SYSTEMS.items() if issubclass(kind, ByMerging)
}


def _icul(subject: Subject) -> Iterator[Candidate]:
    for shots in (0, 1, 2, 3, 4, 5, 6, 8):
        icul = Icul([subject.forget], subject.seen_facts, shots, subject.seed)
        yield Candidate({"shots": shots}, {}, prompts=icul.prompts)


PROMPTED: Mapping[str, BenchMethod] = {
    "icul": BenchMethod(
        "in-context, weights unchanged: a flipped example and right ones before every query",
        _icul,
        "facts",
    )
}
