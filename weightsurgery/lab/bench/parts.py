"""Splitting what is to be forgotten into several requests."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.errors import EditError
from weightsurgery.lab.bench.requests import ForgetRequest

if TYPE_CHECKING:
    from weightsurgery.lab.bench.subject import Subject
    from weightsurgery.learning.data import Example

__all__ = [
    "FUSED",
    "IN_ONE_GO",
    "ONE_BY_ONE",
    "PartialRequest",
    "check_requests",
    "name_of",
    "names_of",
]

ONE_BY_ONE, FUSED, IN_ONE_GO = "one by one", "fused", "in one go"


class PartialRequest(ForgetRequest):
    """Some of several requests: each is to forget an equal share of the task's people.

    Who is in which request depends on the world's seed alone, and on how many requests there are.

    Args:
        count: Requests in all; where people do not divide by it, some have one person more.
        first: The first one included, from 1.
        last: The last one, included.
        way: How they are met, for the name.
    """

    def __init__(self, count: int, first: int, last: int, way: str = "") -> None:
        self.count, self.first, self.last = count, first, last
        self.name = name_of(way, last, count) if way else ""

    def given(self, subject: Subject) -> list[Example]:
        """See :meth:`ForgetRequest.given`: the facts about these people."""
        return self._about(subject, super().given(subject), self.first, self.last)

    @override
    def target_paraphrased(self, subject: Subject) -> list[Example]:
        facts = super().target_paraphrased(subject)
        return self._about(subject, facts, self.first, self.last)

    def also(self, subject: Subject) -> dict[str, list[Example]]:
        """The ``latest`` request alone, and what is still ``waiting``."""
        facts = super().given(subject)
        sets = {"latest": self._about(subject, facts, self.last, self.last)}
        if self.last < self.count:
            sets["waiting"] = self._about(subject, facts, self.last + 1, self.count)
        return sets

    def _about(
        self, subject: Subject, facts: list[Example], first: int, last: int
    ) -> list[Example]:
        people = list(dict.fromkeys(subject.entity[f.prompt] for f in super().given(subject)))
        random.Random(f"requests {subject.seed}").shuffle(people)
        number = {person: 1 + n * self.count // len(people) for n, person in enumerate(people)}
        return [f for f in facts if first <= number[subject.entity[f.prompt]] <= last]


def name_of(way: str, number: int, count: int) -> str:
    """The name of the stage after a request: how requests are met, and how far."""
    return f"{way}, {number} of {count}"


def names_of(count: int) -> tuple[str, ...]:
    """The names of what :func:`run_requests` gives, in order."""
    numbers = range(1, count + 1)
    stages = tuple(name_of(way, number, count) for way in (ONE_BY_ONE, FUSED) for number in numbers)
    return (*stages, name_of(IN_ONE_GO, count, count))


def check_requests(count: int, people: int) -> None:
    """Refuses what cannot be split.

    Raises:
        EditError: Fewer than two requests, or more than people.
    """
    if not 2 <= count <= people:
        raise EditError(
            f"{count} requests about {people} people",
            f"Give a whole number from 2 to {people}: each request is about somebody.",
        )
