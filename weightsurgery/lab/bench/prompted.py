"""Rows of the bench that change the prompts and leave the weights as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from weightsurgery.lab.bench.row import BenchMethod, Candidate
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.learning.in_context import Icul

__all__ = ["PROMPTED"]


def _icul(subject: Subject) -> Iterator[Candidate]:
    for shots in (0, 1, 2, 3, 4, 5, 6, 8):
        asked = Icul([subject.forget], subject.seen_facts, shots, subject.seed)
        yield Candidate({"shots": shots}, {}, prompts=asked.prompts)


PROMPTED: Mapping[str, BenchMethod] = {
    "icul": BenchMethod(
        "in-context, weights unchanged: a flipped example and right ones before every query",
        _icul,
        "facts",
    ),
}
