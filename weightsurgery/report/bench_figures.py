"""Figures that several tables and the picture of a bench share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from weightsurgery.procedures.bench.results import Summary

if TYPE_CHECKING:
    from weightsurgery.procedures.bench.results import Outcome

__all__ = [
    "ABSENT",
    "SHARED",
    "cpu",
    "drifts",
    "figure",
    "is_stage",
    "megabytes",
    "percent",
    "row_name",
    "worst",
    "worst_drift",
]

ABSENT = "–"
"""In a cell whose figure some seed lacks."""

SHARED = "shared"
"""The role of facts that the request holds too: no edit is spared their sight, so that they are
left out of what is said of unseen ones."""

_STAGE = re.compile(r"\b\d+ of \d+$")

_Value = Callable[["Outcome"], float | None]


def figure(outcomes: Sequence[Outcome], value: _Value, digits: int = 1) -> str:
    """Mean ± spread over the seeds, or a dash where one of them lacks the figure."""
    values = [value(each) for each in outcomes]
    known = [each for each in values if each is not None]
    if not known or len(known) < len(values):
        return ABSENT
    found = Summary.of(known)
    text = f"{found.mean:.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {found.spread:.{digits}f}"


def row_name(method: str, asked: str) -> str:
    """A row in words."""
    return ", ".join(filter(None, (method, asked)))


def is_stage(asked: str) -> bool:
    """Whether an ask is one of several requests after one another, as in "fused, 2 of 4"."""
    return _STAGE.search(asked) is not None


def percent(share: float | None) -> float | None:
    """A share, or what stands for a missing one."""
    return None if share is None else 100 * share


def drifts(outcome: Outcome, scores: Mapping[str, float] | None = None) -> dict[str, float]:
    """Drift on unseen facts in percent of the base's score, by role, without the shared ones.

    Args:
        outcome: Of it the base's scores, and the edited model's.
        scores: Others than those, as after rounding.
    """
    now = outcome.keep if scores is None else scores
    return {
        role: 100 * abs(now[key] - before) / before
        for key, before in outcome.keep_before.items()
        for role, _, split in [key.rpartition(".")]
        if split == "unseen" and role != SHARED
    }


def worst_drift(outcome: Outcome) -> float:
    """The largest of :func:`drifts`."""
    return max(drifts(outcome).values())


def worst(outcomes: Sequence[Outcome]) -> str:
    """The roles whose drift is the largest on some seed, where anything drifted."""
    names = []
    for each in outcomes:
        found = drifts(each)
        top = max(found.values())
        names += [role for role, value in found.items() if value == top > 0]
    return ", ".join(dict.fromkeys(names)) or ABSENT


def cpu(outcome: Outcome) -> float | None:
    """Processor seconds."""
    return outcome.cpu_seconds


def megabytes(outcome: Outcome) -> float | None:
    """Peak memory in 10⁶ bytes."""
    return None if outcome.memory is None else outcome.memory / 1e6
