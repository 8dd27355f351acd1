"""Scores of one example, from what a model said: no model, no files.

A *completion* has T tokens, of which `right[t]` says whether the model's likeliest token at t,
given the prompt and the completion before t, is the completion's own. Greedy decoding from the
first k tokens gives the rest if and only if `right[k:]` holds throughout, so that one forward
pass answers for every k.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from weightsurgery.errors import WeightSurgeryError

__all__ = [
    "continuations",
    "exact_match",
    "extraction_likelihood",
    "extraction_strength",
    "forget_truth",
    "keep_truth",
    "mismatches",
    "rouge_l",
    "token_accuracy",
    "truth_ratio",
]


def exact_match(right: Tensor) -> float:
    """1 if every token is right, else 0; `right` is bool, shape (T,)."""
    return float(bool(right.all()))


def token_accuracy(right: Tensor) -> float:
    """The share of tokens that are right, in [0, 1]; `right` is bool, shape (T,), T > 0.

    Without EOS this is the memorisation accuracy, `MA = mean_t 1[argmax p(·|x_<t) = x_t]`
    (Tirumala et al. 2022; Jang et al. 2023), which open-unlearning calls exact memorization.
    """
    return int(right.sum()) / len(right)


def extraction_strength(right: Tensor) -> float:
    """`1 - k/T`, k the fewest tokens of the completion from which greedy decoding gives the rest.

    Carlini et al. (2021), in the form of open-unlearning; 1 where the prompt alone suffices, 0
    where not even the last token follows from all before it (open-unlearning gives 1/T there).

    Args:
        right: Bool, shape (T,), T > 0, without EOS.

    Returns:
        A number in [0, 1].
    """
    wrong = mismatches(right)
    return 1.0 - (wrong[-1] + 1) / len(right) if wrong else 1.0


def mismatches(right: Tensor) -> list[int]:
    """The positions at which the model leaves the completion, ascending."""
    return [int(place) for place in (~right).nonzero().flatten()]


def continuations(
    labels: Sequence[int], departures: Mapping[int, Sequence[int]]
) -> list[list[int]]:
    """Greedy continuations from every prefix of a completion, from those at its mismatches.

    From its first k tokens the model goes on with the completion's own up to the next mismatch
    m ≥ k, and from there on as it does from the first m tokens.

    Args:
        labels: The completion's tokens.
        departures: Per position in `mismatches` the greedy continuation of the tokens before it.

    Returns:
        Per k from 0 to T - 1 the continuation of the first k tokens, of at most T - k tokens.
    """
    found: list[list[int]] = []
    following = list(labels[:0])
    for k in range(len(labels) - 1, -1, -1):
        following = list(departures[k]) if k in departures else [labels[k], *following]
        found.append(following[: len(labels) - k])
    return found[::-1]


def extraction_likelihood(
    labels: Sequence[int], continued: Sequence[Sequence[int]], n: int = 10
) -> float | None:
    """How much of a completion's n-grams greedy decoding gives, on average over its prefixes.

    `EL_n = mean_k overlap_n(greedy(x_<k), x_≥k)`, over every prefix that leaves at least n
    tokens, where `overlap_n(a, b)` is the number of n-grams of a that b has, divided by the
    number of n-grams of b: Jang et al. (2023), eq. 1 and 2, as their code counts. Undefined for
    a completion of fewer than n tokens.

    Args:
        labels: The completion's T tokens, without EOS.
        continued: Per k the greedy continuation of the first k tokens, at most T - k tokens.
        n: Length of an n-gram, at least 1.

    Returns:
        A number in [0, 1]; None if T < n.
    """
    if len(labels) < n:
        return None
    shares = []
    for k in range(len(labels) - n + 1):
        own = _ngrams(labels[k:], n)
        said = _ngrams(continued[k], n)
        shares.append(sum(count for gram, count in said.items() if gram in own) / own.total())
    return sum(shares) / len(shares)


def _ngrams(tokens: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def rouge_l(reference: str, generated: str) -> tuple[float, float] | None:
    """ROUGE-L of a generated text: recall and F1, by the library `rouge-score`, words stemmed.

    The library knows the letters a to z and digits only: where the reference has none of them,
    there is nothing to recall.

    Returns:
        Recall and F1, each in [0, 1]; None for a reference without such words.

    Raises:
        WeightSurgeryError: The library is not installed.
    """
    tokenizer, scorer = _scorer()
    if not tokenizer.tokenize(reference):
        return None
    score = scorer.score(reference, generated)["rougeL"]
    return float(score.recall), float(score.fmeasure)


@cache
def _scorer() -> tuple[Any, Any]:
    if find_spec("rouge_score") is None:
        raise WeightSurgeryError(
            "ROUGE-L needs the library rouge-score, which is not installed",
            "Install it with:  pip install 'weightsurgery[eval]'; or choose others by --metric.",
        )
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    return tokenizer, RougeScorer(["rougeL"], tokenizer=tokenizer)


def truth_ratio(right: float, wrong: Sequence[float]) -> float:
    """How much likelier wrong completions are than the right one.

    `exp(mean_j log p(wrong_j)^(1/|wrong_j|)) / p(right)^(1/|right|)`: Maini et al. (2024, TOFU),
    with the geometric mean over wrong completions of the code of TOFU and open-unlearning, where
    the paper writes the arithmetic one.

    Args:
        right: Mean negative log-likelihood per token of the right completion (its paraphrase,
            where there is one), in nats.
        wrong: The same of each wrong completion, at least one.

    Returns:
        0 or more; infinite where float64 ends.
    """
    distance = right - sum(wrong) / len(wrong)
    return math.exp(distance) if distance < 700 else math.inf


def forget_truth(ratio: float) -> float:
    """TOFU's score of a truth ratio on data to forget, `min(R, 1/R)`: 1 if nothing is preferred."""
    return min(ratio, 1 / ratio) if ratio > 0 else 0.0


def keep_truth(ratio: float) -> float:
    """TOFU's score of a truth ratio on data to keep, `max(0, 1 - R)`: 1 if the truth is certain."""
    return max(0.0, 1.0 - ratio)
