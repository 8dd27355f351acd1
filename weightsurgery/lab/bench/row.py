"""What a row of the bench is, and what it may spend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weightsurgery.lab.bench.subject import Change, Prompts, Subject

__all__ = ["BUDGET", "BenchMethod", "Candidate"]

BUDGET = 8
"""Candidates, or looks at validation data, that each method has."""


@dataclass(frozen=True)
class Candidate:
    """A setting and what it does to the weights.

    Attributes:
        setting: By name.
        change: ``W' − W`` by parameter.
        looks: How often validation data were looked at to find it, beyond the bench's own look.
        prompts: What every query becomes, for what changes prompts instead of weights; None leaves
            them as they are.
    """

    setting: Mapping[str, Any]
    change: Change
    looks: int = 0
    prompts: Prompts | None = None


@dataclass(frozen=True)
class BenchMethod:
    """A row of the bench.

    Attributes:
        about: What it does, in a line.
        candidates: Makes its candidates, cheapest shared work first.
        sees: What of the tasks to keep it is given: ``"nothing"``, ``"vectors"``, ``"facts"``
            (seen ones) or ``"everything"``.
    """

    about: str
    candidates: Callable[[Subject], Iterator[Candidate]]
    sees: str = "nothing"
