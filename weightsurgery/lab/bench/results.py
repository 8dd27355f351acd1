"""A bench's results: per method and seed the chosen candidate's scores, and means over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.plain_files import write_whole
from weightsurgery.errors import DataError, OutputError

__all__ = ["Bench", "Outcome", "Summary", "Tried", "read_bench", "save_bench"]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Tried:
    """A candidate with the scores that decide whether it is chosen.

    Attributes:
        setting: By name.
        target: Exact match on the request, in [0, 1].
        keep: Role → exact match on the keep task's validation facts.
    """

    setting: Mapping[str, Any]
    target: float
    keep: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """One method on one world.

    Attributes:
        method: Its name.
        seed: The world's.
        setting: Of the chosen candidate.
        qualifies: Whether it leaves every keep task's validation facts at the threshold; where
            no candidate does, the one that harms least is shown.
        candidates: How many there were, or looks at validation data.
        seconds: Wall time to make and validate all of them.
        target: Exact match on the request: the facts to forget or to learn, in [0, 1].
        target_before: The same of the base.
        keep: ``ROLE.seen`` and ``ROLE.unseen`` → exact match.
        keep_before: The same of the base.
        chance: Exact match on the request of one who knows the forms alone.
        paraphrased: Exact match on the request in words that no edit saw; None without.
        rounded: After rounding the weights to NF4: ``"target"`` and the keep sets.
        relearned: After training on half of the request: ``"half"``, that half; ``"rest"``, the
            other one; ``"rest_before"``, the other one before.
        rounded_int8: Like ``rounded``, to 8-bit integers; empty in results older than it.
        cpu_seconds: Like ``seconds``, but processor time of all threads; None in older results.
        memory: Bytes of main memory at the peak of that work, beyond what was held before it, the
            model itself among that; None where it is not known.
        tried: All candidates in the order they were made; none in older results.
        validation_before: Role → exact match of the base on validation facts.
        asked: Name of the request, in a study of several; empty otherwise.
        also: Name of another set of facts → exact match.
        also_before: The same of the base.
    """

    method: str
    seed: int
    setting: Mapping[str, Any]
    qualifies: bool
    candidates: int
    seconds: float
    target: float
    target_before: float
    keep: Mapping[str, float]
    keep_before: Mapping[str, float]
    chance: float
    paraphrased: float | None = None
    rounded: Mapping[str, float] = field(default_factory=dict)
    relearned: Mapping[str, float] = field(default_factory=dict)
    rounded_int8: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: float | None = None
    memory: int | None = None
    tried: Sequence[Tried] = ()
    validation_before: Mapping[str, float] = field(default_factory=dict)
    asked: str = ""
    also: Mapping[str, float] = field(default_factory=dict)
    also_before: Mapping[str, float] = field(default_factory=dict)

    @property
    def forgotten(self) -> float:
        """Chance-normalised forgetting in percent, at most 100."""
        lost = (self.target_before - self.target) / (self.target_before - self.chance)
        return min(100.0, 100 * lost)

    def drift(self, name: str, scores: Mapping[str, float] | None = None) -> float:
        """Relative change of a keep set's score, in percent; or of others, as after rounding."""
        before = self.keep_before[name]
        return 100 * abs((self.keep if scores is None else scores)[name] - before) / before


@dataclass(frozen=True)
class Summary:
    """A figure over the seeds.

    Attributes:
        mean: Over seeds.
        spread: Sample standard deviation; 0 for one seed.
    """

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Over at least one value."""
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), spread)


@dataclass(frozen=True)
class Bench:
    """A whole bench.

    Attributes:
        variant: Of the world.
        task: ``"forget"`` or ``"learn"``.
        threshold: Share of every keep task's validation score that a candidate must leave.
        outcomes: Per method and seed.
        versions: Of the libraries.
    """

    variant: str
    task: str
    threshold: float
    outcomes: tuple[Outcome, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    def by_row(self) -> Iterator[tuple[str, str, list[Outcome]]]:
        """Methods and requests in their order, with an outcome for each seed."""
        rows: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in self.outcomes:
            rows.setdefault((outcome.method, outcome.asked), []).append(outcome)
        for (method, request), outcomes in rows.items():
            yield method, request, outcomes

    def merged(self, other: Bench) -> Bench:
        """Both together; of an outcome in both, the other's counts.

        Raises:
            DataError: They are benches of different things.
        """
        for name in ("variant", "task", "threshold"):
            if getattr(self, name) != getattr(other, name):
                raise DataError(
                    f"results of different benches: {name} {getattr(self, name)!r} and"
                    f" {getattr(other, name)!r}",
                    "Print them apart.",
                )
        outcomes = {
            (outcome.method, outcome.asked, outcome.seed): outcome
            for outcome in (*self.outcomes, *other.outcomes)
        }
        return Bench(
            self.variant, self.task, self.threshold, tuple(outcomes.values()), self.versions
        )

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"format": FORMAT_VERSION, **asdict(self)}


def read_bench(path: str | Path) -> Bench:
    """Read what ``ws bench --json`` printed.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if document.pop("format") != FORMAT_VERSION:
            raise ValueError("another format")
        outcomes = tuple(_outcome(row) for row in document.pop("outcomes"))
        return Bench(outcomes=outcomes, **document)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "Check the path.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: holds no results of a bench: {error}",
            "Make them with:  ws bench --json > FILE",
        ) from error


def _outcome(fields: dict[str, Any]) -> Outcome:
    tried = tuple(Tried(**row) for row in fields.pop("tried", ()))
    return Outcome(**fields, tried=tried)


def save_bench(bench: Bench, path: Path) -> None:
    """Write what :func:`read_bench` reads; the file is the old one or the new one, never half.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        write_whole(path, json.dumps(bench.document(), indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", "Name another file.") from None
