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
"""The role of facts that the request holds too: no edit is spared their sight, so that they are
left out of what is said of unseen ones."""

UNHELD = "* on some seed no candidate held the keep tasks: the least harmful is shown."
"""What is said below a table of what :func:`marked` marks."""

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
    """Whether a request is one of several requests after one another, as in "fused, 2 of 4"."""
    return _STAGE.search(asked) is not None


def marked(text: str, outcomes: Sequence[Outcome]) -> str:
    """With a star where on some seed no candidate held the keep tasks."""
    return text if all(each.qualifies for each in outcomes) else f"{text} *"


def seeds_of(outcomes: Iterable[Outcome]) -> str:
    """The seeds, in words."""
    return ", ".join(map(str, sorted({each.seed for each in outcomes})))


def any_shared(outcomes: Iterable[Outcome]) -> bool:
    """Whether some request holds facts of what is to be kept."""
    return any(f"{SHARED}.unseen" in each.keep for each in outcomes)


def percent(share: float | None) -> float | None:
    """A share, or what stands for a missing one."""
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
