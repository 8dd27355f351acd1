"""Events: the truth coming up at a place, and how likely that is to be."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Event"]


@dataclass(frozen=True)
class Event:
    """That one of some tokens comes next, at a place in an answer.

    Attributes:
        at: The place, from 0: before the answer's token of that number.
        tokens: What begins, or goes on with, the truth: its own token first.
        wanted: Probability that they are to have together.
        known: Probability up to which the truth does not count as known, though it be the
            likeliest: a stranger may guess, too.
    """

    at: int
    tokens: tuple[int, ...]
    wanted: float
    known: float = 0.0
