"""Figures that several tables and the picture of a bench share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from weightsurgery.lab.bench.results import Summary

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Outcome

__all__ = [
    "ABSENT",
    "SHARED",
    "UNHELD",
    "any_shared",
    "cpu",
    "drifts",
    "figure",
    "is_stage",
    "marked",
    "megabytes",
    "percent",
    "row_name",
    "seeds_of",
    "worst",
    "worst_drift",
]

ABSENT = "–"
"""In a cell whose figure some seed lacks."""

SHARED = "shared"
"""The role of facts that the request holds too: every edit sees them, so that drift on unseen facts
leaves them out."""

UNHELD = "* on some seed no candidate held the keep tasks: the least harmful is shown."
"""The note of a table with rows that :func:`marked` marks."""

_STAGE = re.compile(r"\b\d+ of \d+$")

_Value = Callable[["Outcome"], float | None]


def figure(outcomes: Sequence[Outcome], value: _Value, digits: int = 1) -> str:
    """Mean ± spread over the seeds, or a dash where one of them lacks the figure."""
    values = [value(outcome) for outcome in outcomes]
    known = [number for number in values if number is not None]
    if not known or len(known) < len(values):
        return ABSENT
    summary = Summary.of(known)
    text = f"{summary.mean:.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {summary.spread:.{digits}f}"


def row_name(method: str, request: str) -> str:
    """A row in words."""
    return ", ".join(filter(None, (method, request)))


def is_stage(request: str) -> bool:
    """Whether a request is one of several requests after one another, as in "fused, 2 of 4"."""
    return _STAGE.search(request) is not None


def marked(text: str, outcomes: Sequence[Outcome]) -> str:
    """With a star where on some seed no candidate held the keep tasks."""
    return text if all(outcome.qualifies for outcome in outcomes) else f"{text} *"


def seeds_of(outcomes: Iterable[Outcome]) -> str:
    """The seeds, in words."""
    return ", ".join(map(str, sorted({outcome.seed for outcome in outcomes})))


def any_shared(outcomes: Iterable[Outcome]) -> bool:
    """Whether some request holds facts of what is to be kept."""
    return any(f"{SHARED}.unseen" in outcome.keep for outcome in outcomes)


def percent(share: float | None) -> float | None:
    """A share in percent; None for a missing one."""
    return None if share is None else 100 * share


def drifts(outcome: Outcome, scores: Mapping[str, float] | None = None) -> dict[str, float]:
    """Drift on unseen facts in percent of the base's score, by role, without the shared ones.

    Args:
        outcome: Of it the base's scores, and the edited model's.
        scores: Others than those, as after rounding.
    """
    return {
        role: outcome.drift(key, scores)
        for key in outcome.keep_before
        for role, _, split in [key.rpartition(".")]
        if split == "unseen" and role != SHARED
    }


def worst_drift(outcome: Outcome) -> float:
    """The largest of :func:`drifts`."""
    return max(drifts(outcome).values())


def worst(outcomes: Sequence[Outcome]) -> str:
    """The roles whose drift is the largest on some seed, where anything drifted."""
    names = []
    for outcome in outcomes:
        by_role = drifts(outcome)
        top = max(by_role.values())
        names += [role for role, value in by_role.items() if value == top > 0]
    return ", ".join(dict.fromkeys(names)) or ABSENT


def cpu(outcome: Outcome) -> float | None:
    """Processor seconds."""
    return outcome.cpu_seconds


def megabytes(outcome: Outcome) -> float | None:
    """Peak memory in 10⁶ bytes."""
    return None if outcome.memory is None else outcome.memory / 1e6
