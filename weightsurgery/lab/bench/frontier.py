"""Forgetting against harm: the points that a bench's picture and page show.

Forgetting is chance-normalised and in percent (facts learned in percent, where a bench is about
learning); harm is the drift of the worst task to keep in percent of the base's score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weightsurgery.errors import DataError
from weightsurgery.lab.bench.figures import SHARED, any_shared, is_stage, row_name, worst_drift
from weightsurgery.lab.bench.results import Summary

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench, Outcome, Tried

__all__ = ["FAMILIES", "Panel", "Point", "bench_sections", "families", "panels", "trade_off"]

FAMILIES = (
    "retrained", "control", "by weights", "from data", "trained", "merging", "prompted", "other",
)  # fmt: skip
"""What methods are, in the order of a legend."""

_CONTROLS = ("base", "random")
_BY_WEIGHTS = (
    "negate", "negate-low-rank", "right", "right-sum", "left", "both", "shared", "frobenius",
    "weights-ridge", "learn-right",
)  # fmt: skip
_FROM_DATA = (
    "activations", "activations-strangers", "retain-aware", "rounds", "subspace-seen",
    "subspace-generic", "subspace", "subspace-long", "learn-subspace",
)  # fmt: skip


def families() -> dict[str, str]:
    """The family of each method of the bench, out of :data:`FAMILIES`."""
    from weightsurgery.lab.bench.systems import MERGING, PROMPTED, TRAINED

    members = {
        "retrained": ("retrained",),
        "control": _CONTROLS,
        "by weights": _BY_WEIGHTS,
        "from data": _FROM_DATA,
        "trained": (*TRAINED, "lora", "full"),
        "merging": tuple(MERGING),
        "prompted": tuple(PROMPTED),
    }
    return {name: family for family, names in members.items() for name in names}


@dataclass(frozen=True)
class Point:
    """A method on all worlds.

    Attributes:
        method: Its name.
        harm: Of the chosen candidates, over the seeds: on facts given to no edit and no choice.
        reached: Forgotten or learned by them.
        held: Whether on every seed some candidate held the keep tasks.
        trade_off: The candidates' harm on validation facts and what they reach, see
            :func:`trade_off`.
    """

    method: str
    harm: Summary
    reached: Summary
    held: bool
    trade_off: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Panel:
    """One picture: the methods that met the same request in the same worlds.

    Attributes:
        variant: Of the worlds.
        request: Its name; empty for the plain one.
        learning: Whether facts were to be learned rather than forgotten.
        threshold: Share of the validation score that a candidate must leave.
        seeds: Of the worlds.
        shared: Whether the request holds facts of what is to be kept, which harm leaves out.
        points: A method each.
    """

    variant: str
    request: str
    learning: bool
    threshold: float
    seeds: tuple[int, ...]
    shared: bool
    points: tuple[Point, ...]


def panels(benches: Sequence[Bench]) -> list[Panel]:
    """A panel for every variant and request, in their order.

    Raises:
        DataError: The benches hold no outcome.
    """
    drawn = [
        _panel(bench, request)
        for bench in benches
        for request in dict.fromkeys(outcome.asked for outcome in bench.outcomes)
    ]
    if not drawn:
        raise DataError("results of a bench without a single row", "Let it run a row first.")
    return drawn


def _panel(bench: Bench, request: str) -> Panel:
    learning = bench.task == "learn"
    rows = [(method, outcomes) for method, name, outcomes in bench.by_row() if name == request]
    all_outcomes = [outcome for _, outcomes in rows for outcome in outcomes]
    return Panel(
        bench.variant,
        request,
        learning,
        bench.threshold,
        tuple(sorted({outcome.seed for outcome in all_outcomes})),
        any_shared(all_outcomes),
        tuple(
            Point(
                method,
                Summary.of([worst_drift(outcome) for outcome in outcomes]),
                Summary.of([_reached(outcome, outcome.target, learning) for outcome in outcomes]),
                all(outcome.qualifies for outcome in outcomes),
                # What comes after other requests was chosen by the latest of them alone.
                () if is_stage(request) else trade_off(outcomes, learning),
            )
            for method, outcomes in rows
        ),
    )


def _reached(outcome: Outcome, target: float, learning: bool) -> float:
    return 100 * target if learning else replace(outcome, target=target).forgotten


def trade_off(
    outcomes: Sequence[Outcome], learning: bool = False
) -> tuple[tuple[float, float], ...]:
    """What a method's candidates reach for how much harm on validation facts.

    Candidates of one setting are one, at their mean over the seeds; settings that some seed lacks
    are left out. Of these, such are given that no other reaches as much with as little harm.

    Returns:
        Harm and reach, by growing harm; none for results that kept no candidates.
    """
    if not outcomes:
        return ()
    tried = [_by_setting(outcome.tried) for outcome in outcomes]
    means = []
    for key in tried[0]:
        if all(key in candidates for candidates in tried):
            pairs = [(_harm(o, t[key]), _reached(o, t[key].target, learning))
                     for o, t in zip(outcomes, tried, strict=True)]  # fmt: skip
            harm, reached = zip(*pairs, strict=True)
            means.append((Summary.of(harm).mean, Summary.of(reached).mean))
    best: list[tuple[float, float]] = []
    for harm_, reached_ in sorted(means, key=lambda pair: (pair[0], -pair[1])):
        if not best or reached_ > best[-1][1]:
            best.append((harm_, reached_))
    return tuple(best)


def _by_setting(tried: Sequence[Tried]) -> Mapping[tuple[str, int], Tried]:
    """By setting and, where one comes again, how many came before."""
    by_setting: dict[tuple[str, int], Tried] = {}
    for candidate in tried:
        text = json.dumps(dict(candidate.setting), sort_keys=True)
        by_setting[text, sum(known == text for known, _ in by_setting)] = candidate
    return by_setting


def _harm(outcome: Outcome, tried: Tried) -> float:
    return max(
        100 * abs(tried.keep[role] - before) / before
        for role, before in outcome.validation_before.items()
        if role != SHARED
    )


def bench_sections(benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """A section of type ``points`` for every variant and request.

    Raises:
        DataError: The benches hold no outcome.
    """
    return [_section(panel) for panel in panels(benches)]


def _section(panel: Panel) -> dict[str, Any]:
    family_of, limit = families(), 100 * (1 - panel.threshold)
    done = "Learning" if panel.learning else "Forgetting"
    return {
        "type": "points",
        "title": f"{done} against harm: {row_name(panel.variant, panel.request)}",
        "x": "harm: drift of the worst task to keep, on unseen facts, %",
        "y": "learned, %" if panel.learning else "forgotten over chance, %",
        "note": f"Seeds {', '.join(map(str, panel.seeds))}: means; bars are standard deviations."
        " Hollow: on some seed no candidate kept what it was to keep.",
        "named": True,
        "wide": True,
        "limit": {"x": limit, "label": f"loss allowed: {limit:g} %"},
        "points": [
            {"x": point.harm.mean, "y": point.reached.mean, "label": point.method,
             "series": family_of.get(point.method, "other"), "hollow": not point.held}
            for point in panel.points
        ],
        # From x and y to x and y.
        "bars": [
            bar
            for point in panel.points
            for x, y, dx, dy in [
                (point.harm.mean, point.reached.mean, point.harm.spread, point.reached.spread)
            ]
            for bar in ([max(0.0, x - dx), y, x + dx, y], [x, y - dy, x, y + dy])
        ],
    }  # fmt: skip
