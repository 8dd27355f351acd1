"""The rows of the bench for the survey's merging systems.

Each offers eight points of its lines of changes, as every method has eight candidates, and the
bench chooses among them by its own rule. Of the published recipe for λ that leaves the grid: of
its 21 scales there are eight, and what must be left of the control is the bench's threshold, which
holds for all methods alike, instead of 95 %. (``ws unlearn`` follows the recipe as it stands.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightsurgery.lab.bench.row import Candidate, Method
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.procedures.change_request import ChangeRequest
from weightsurgery.procedures.merging import MERGERS, find_line
from weightsurgery.procedures.tuned import SCALES

__all__ = ["MERGING"]


@dataclass(frozen=True)
class _Points:
    """Points of one line.

    Attributes:
        scales: λ.
        rate: Factor of the learning rate of the world's own fine-tunes, which are in full;
            adapters take larger ones.
        settings: The system's own.
    """

    scales: Sequence[float]
    rate: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)


def _row(name: str, *lines: _Points) -> Method:
    needs_keep = MERGERS[name].needs_keep

    def candidates(subject: Subject) -> Iterator[Candidate]:
        keep = subject.seen_facts if needs_keep else []
        for points in lines:
            tuning = subject.tuning()
            training = replace(tuning, learning_rate=points.rate * tuning.learning_rate)
            request = ChangeRequest(
                subject.model, subject.tokenizer, tuple(subject.names), subject.forget, keep,
                training=training, settings=points.settings,
            )  # fmt: skip
            line = find_line(name, request)
            for scale in points.scales:
                setting = {"learning_rate": training.learning_rate, **points.settings}
                yield Candidate({**setting, "scale": scale}, line.at(scale))

    return Method(MERGERS[name].about, candidates, "facts" if needs_keep else "nothing")


MERGING: Mapping[str, Method] = {
    # All on the published grid, which ends at 1; `negate` goes on to 2.
    "task-vector": _row("task-vector", _Points(SCALES[6::2])),
    "cpem-lora": _row(
        "cpem-lora",
        _Points((0.75, 1.0, 1.25, 1.5), rate=10),
        _Points((0.25, 0.375, 0.5, 0.75), rate=20),
    ),
    "cpem-ia3": _row(
        "cpem-ia3",
        _Points((2.0, 4.0, 6.0, 8.0), rate=60),
        _Points((1.5, 2.0, 2.5, 3.0), rate=200),
    ),
    "negmerge": _row("negmerge", _Points((0.5, 0.75, 1.0, 1.125, 1.25, 1.375, 1.5, 2.0))),
    "ethos": _row("ethos", _Points((0.5, 0.75, 1.0, 1.125, 1.25, 1.375, 1.5, 2.0))),
    # The base answers all that is to be kept, so that the good change has little to add: both.
    "ext-sub": _row(
        "ext-sub",
        _Points((0.5, 1.0, 2.0)),
        _Points((0.75, 1.0, 1.25, 1.5, 2.0), settings={"expert": 0.0}),
    ),
}
