"""Scoring validation data while a model is trained, and keeping the best weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.answers import answered
from weightsurgery.learning.data import Example
from weightsurgery.learning.stages import held_values, set_values

__all__ = ["Rule", "Score", "Watch"]

Score = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Sequence[Example]], float]
"""A model's score on examples, in [0, 1]."""


@dataclass(frozen=True)
class Rule:
    """The share of its score that every keep set must keep, for a change of weights to qualify.

    Attributes:
        threshold: As a share, in [0, 1].
        before: Set → the score that it is a share of.
    """

    threshold: float = 0.975
    before: Mapping[str, float] = field(default_factory=dict)

    def left(self, scores: Mapping[str, float]) -> float:
        """The least share that a set has left; of nothing, nothing can be lost."""
        shares = [scores[name] / known for name, known in self.before.items() if known]
        return min(shares, default=1.0)

    def holds(self, scores: Mapping[str, float]) -> bool:
        """Whether every set keeps enough."""
        return self.left(scores) >= self.threshold


class Watch:
    """Looks at validation data during training; the best weights so far count in the end.

    The best are those that forget most (or, learning, know most) among those that leave every
    keep set the share that the rule demands.

    Args:
        target: Examples to forget or learn.
        keep: Validation examples of what to keep, by name; not those in the statistics.
        rule: What every keep set must keep; where it names no score of a set, that of the model
            as it is when the training starts.
        every: Steps between looks; rounds that negate are looked at between them.
        learning: More of the target is better.
        patience: Looks in a row at which a keep set suffers before the training ends. One alone
            says little: training inside the subspace finds back, and a small set loses several
            percent with a single answer.
        score: Of the target and of each keep set.

    Attributes:
        history: Score of the target (under ``""``) and of each keep set, before any change and
            at each look; of looks also the ``"step"``.
    """

    def __init__(
        self,
        target: Sequence[Example],
        keep: Mapping[str, Sequence[Example]],
        rule: Rule = Rule(),
        every: int = 10,
        learning: bool = False,
        patience: int = 3,
        score: Score = answered,
    ) -> None:
        self.target, self.keep, self.every, self.learning = target, keep, every, learning
        self.rule, self.patience, self.score = rule, patience, score
        self.history: list[dict[str, float]] = []
        self._rule = rule
        self._best: tuple[float, dict[str, Tensor]] | None = None

    def begin(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
    ) -> None:
        """Measure the model before any change."""
        self._model, self._tokenizer, self._names = model, tokenizer, list(names)
        scores = self._scores()
        before = {name: self.rule.before.get(name, scores[name]) for name in self.keep}
        self._rule = Rule(self.rule.threshold, before)
        self._best = (scores[""], held_values(model, self._names))
        self.history = [scores]
        self._looked = self._suffering = 0

    def look(self, step: int) -> bool:
        """Measure if it is time to; whether to end: a keep set suffers on, or all is reached.

        Args:
            step: Steps taken since :meth:`begin`.
        """
        if step - self._looked < self.every:
            return False
        self._looked = step
        was_training = self._model.training
        scores = self._scores()
        self._model.train(was_training)
        self.history.append({**scores, "step": float(step)})
        if not self._rule.holds(scores):
            self._suffering += 1
            return self._suffering >= self.patience
        self._suffering = 0
        assert self._best is not None
        if (scores[""] > self._best[0]) if self.learning else (scores[""] < self._best[0]):
            self._best = (scores[""], held_values(self._model, self._names))
        return scores[""] == float(self.learning)

    def finish(self) -> None:
        """Put the best weights in place; those before any change, where no look saw better."""
        assert self._best is not None
        set_values(self._model, self._best[1])

    def _scores(self) -> dict[str, float]:
        """Of the target, under the empty name, and of each keep set."""
        sets = {"": self.target, **self.keep}
        return {name: self.score(self._model, self._tokenizer, rows) for name, rows in sets.items()}
