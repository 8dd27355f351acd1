"""Which metrics there are, without what computes them: importing this loads no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightsurgery.errors import SelectionError
from weightsurgery.suggestions import one_of

__all__ = ["CHOICES", "DEFAULT", "METRICS", "SHARES", "Metric", "choose", "is_share", "titles"]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        title: Its name for people.
        choice: The word that chooses it; some come together.
        share: In [0, 1] and higher for what is known better, so that forgetting is defined.
        transform: From the mean over examples to the score.
    """

    title: str
    choice: str
    share: bool = True
    transform: Callable[[float], float] = float


METRICS: dict[str, Metric] = {
    "begins_with": Metric("begins with the truth", "begins_with"),
    "contains": Metric("contains the truth", "contains"),
    "exact_match": Metric("exact match", "exact_match"),
    "token_accuracy": Metric("token accuracy", "token_accuracy"),
    "nll": Metric("NLL per token", "nll", share=False),
    "perplexity": Metric("perplexity", "perplexity", share=False, transform=math.exp),
    "probability": Metric("P(truth)", "probability"),
    "probability_per_token": Metric("P(truth) per token", "probability_per_token"),
    "rouge_l_recall": Metric("ROUGE-L recall", "rouge_l"),
    "rouge_l_f": Metric("ROUGE-L F1", "rouge_l"),
    "ma": Metric("MA", "ma"),
    "el": Metric("EL", "el"),
    "es": Metric("ES", "es"),
    "truth_ratio": Metric("truth ratio", "truth_ratio", share=False),
}
"""Every score by name: `nll` and `perplexity` in nats per token; see `scores.score`."""

DEFAULT = (
    "begins_with", "contains", "exact_match", "perplexity", "probability", "rouge_l_recall",
)  # fmt: skip
"""What is scored by default: one forward pass and one generation per example."""

CHOICES = tuple(dict.fromkeys(metric.choice for metric in METRICS.values()))
"""The words that choose metrics, but for `all`."""

SHARES = tuple(name for name, metric in METRICS.items() if metric.share)
"""Names of the metrics that are shares."""


def choose(words: Sequence[str]) -> list[str]:
    """The names in `METRICS` that words choose, in their order there.

    Args:
        words: Names, with - or _; words that choose some together; `all` chooses every one.

    Raises:
        SelectionError: A word chooses none.
    """
    wanted = {word.replace("-", "_") for word in words}
    for word in words:
        if word.replace("-", "_") not in {"all", *CHOICES, *METRICS}:
            raise SelectionError(f"metric {word!r}", one_of(word, ["all", *CHOICES]))
    return [name for name, metric in METRICS.items() if {"all", metric.choice, name} & wanted]


def is_share(name: str) -> bool:
    """Whether a score is a share; one of an unknown name is taken for one."""
    return name not in METRICS or METRICS[name].share


def titles(n: int | None = None) -> dict[str, str]:
    """Names of metrics for people; EL's with the length of its n-grams where that is given."""
    known = {name: metric.title for name, metric in METRICS.items()}
    return known if n is None else {**known, "el": f"{known['el']}_{n}"}
