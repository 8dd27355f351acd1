"""The rows of the bench for systems that merge, of the points they name.

Each offers eight points of its lines of changes, as every method has eight candidates, and the
bench chooses among them by its own rule. Of the published recipe for λ that leaves the grid: of
its 21 scales there are eight, and what must be left of the control is the bench's threshold, which
holds for all methods alike, instead of 95 %. (``ws unlearn`` follows the recipe as it stands.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from weightsurgery.lab.bench.row import BenchMethod, Candidate
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.unlearning.change_request import ChangeRequest
from weightsurgery.unlearning.merging import ByMerging, find_line
from weightsurgery.unlearning.methods import SYSTEMS

__all__ = ["MERGING"]


def _row(kind: type[ByMerging]) -> BenchMethod:
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
    name: _row(kind) for name, kind in SYSTEMS.items() if issubclass(kind, ByMerging)
}
