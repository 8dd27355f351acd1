"""What an attack is scored by: metrics of every part, and forget quality against a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.learning.intervals import Measurements
from weightsurgery.procedures.attacked import ScoredSets
from weightsurgery.progress import Progress
from weightsurgery.scoring.formulas import forget_quality
from weightsurgery.scoring.sets import ModelScorer, YardstickSet, checked_set
from weightsurgery.scoring.yardstick import pooled, reference_ratios

__all__ = ["AttackScores", "Yardstick", "asked"]


@dataclass(frozen=True)
class Yardstick:
    """Forget quality of the rows to forget that the attacker does not have.

    Attributes:
        ratios: Logarithms of the reference's truth ratios.
        batch_size: Examples per forward pass.
        progress: Called after every batch.
    """

    ratios: Sequence[float]
    batch_size: int
    progress: Progress | None

    @classmethod
    def read(
        cls,
        reference: str | Path,
        sets: ScoredSets,
        batch_size: int,
        device: str,
        progress: Progress | None,
    ) -> Yardstick:
        """Ask the reference.

        Args:
            reference: As for :func:`weightsurgery.scoring.yardstick.tofu`.
            sets: The sets that are scored.
            batch_size: Examples per forward pass.
            device: Where the reference runs.
            progress: Called after every batch.

        Raises:
            DataError: A row lacks wrong answers or a paraphrase, or the reference was asked other
                rows.
        """
        rows = asked(sets, next(iter(sets.directories)))
        ratios = reference_ratios(
            reference, rows, batch_size=batch_size, device=device, progress=progress
        )
        return cls(ratios, batch_size, progress)

    def quality(self, model: Any, tokenizer: Any, sets: ScoredSets, name: str) -> float:
        """The p-value of one state of a model; see :func:`formulas.forget_quality`."""
        scorer = ModelScorer(model, tokenizer, self.batch_size, self.progress)
        likelihoods = scorer.likelihoods(asked(sets, name))
        return forget_quality([row.log_truth_ratio for row in likelihoods], self.ratios)


@dataclass(frozen=True)
class AttackScores:
    """Scores models on every part of the sets, state by state.

    Attributes:
        sets: What is scored.
        score_rows: See `scores.score`.
        yardstick: Asked too, where there is one.
        qualities: Per model and state, its forget quality.
    """

    sets: ScoredSets
    score_rows: Callable[..., dict[str, Measurements]]
    yardstick: Yardstick | None = None
    qualities: dict[str, dict[str, float]] = field(default_factory=dict)

    def measured(
        self, model: Any, tokenizer: Any, name: str, state: str
    ) -> list[dict[str, Measurements]]:
        """Measurements of every part.

        Args:
            model: In any state.
            tokenizer: Its tokenizer.
            name: Of the model among the sets' directories.
            state: What forget quality is noted down under.
        """
        if self.yardstick is not None:
            quality = self.yardstick.quality(model, tokenizer, self.sets, name)
            self.qualities.setdefault(name, {})[state] = quality
        return [
            self.score_rows(model, tokenizer, rows, where=part.label, forget=part.role == "forget")
            for part, rows in self.sets.parts_of(name)
        ]


def asked(sets: ScoredSets, name: str) -> YardstickSet:
    """Rows to forget as a model's tokenizer reads them, but those that are trained on.

    Raises:
        DataError: One lacks wrong answers or a paraphrase.
    """
    return pooled(
        [
            checked_set(rows, part.path, part.name, part.role)
            for part, rows in sets.parts_of(name)
            if part.role == "forget" and part.part != "trained on"
        ]
    )
