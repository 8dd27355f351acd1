"""Scores of one example, from a model's outputs: no model, no files.

A *completion* has T tokens, of which `right[t]` says whether the model's likeliest token at t,
given the prompt and the completion before t, is the completion's own. Greedy decoding from the
first k tokens gives the rest if and only if `right[k:]` holds throughout, so that one forward
pass answers for every k.

An *answer* is text that a model wrote by itself; see `begins_with` and `contains`.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from weightsurgery.deferred import need

__all__ = [
    "begins_with",
    "contains",
    "continuations",
    "exact_match",
    "extraction_likelihood",
    "extraction_strength",
    "first_lines",
    "forget_truth",
    "keep_truth",
    "lines_of",
    "mismatches",
    "rouge_l",
    "settled",
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
    continued: list[list[int]] = []
    following = list(labels[:0])
    for k in range(len(labels) - 1, -1, -1):
        following = list(departures[k]) if k in departures else [labels[k], *following]
        continued.append(following[: len(labels) - k])
    return continued[::-1]


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
        reference = _ngrams(labels[k:], n)
        generated = _ngrams(continued[k], n)
        shares.append(
            sum(count for gram, count in generated.items() if gram in reference) / reference.total()
        )
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
    others = "choose others by --metric"
    need("ROUGE-L is asked for", "rouge_score", extra="eval", instead=others)
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    return tokenizer, RougeScorer(["rougeL"], tokenizer=tokenizer)


# Scripts that write words, or a word and its particles, without a space between them.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)

# Characters at the end of a text that more of it may still change: a byte of a character, a mark
# on a letter, the point of a number.
_UNSURE = 2


def begins_with(truth: str, answer: str) -> bool:
    """Whether an answer begins with the truth, as whole words.

    Case, and how much white space there is and of which kind, say nothing: both are stripped and
    folded (Unicode NFC). Behind the truth no letter, digit or mark may follow, so that "Parisian"
    does not begin with "Paris"; nor may another number go on, so that "4.5" does not begin with "4"
    (but "4.0" does), nor "1,000" with "1".
    Scripts that part no words by spaces (Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese)
    may go on. With an empty truth begins nothing but an empty answer.
    """
    return any(start == 0 for start, _ in _matches(_folded(truth), _folded(answer)))


def contains(truth: str, answer: str) -> bool:
    """Whether the truth stands anywhere in an answer, as whole words; see `begins_with`."""
    return any(True for _ in _matches(_folded(truth), _folded(answer)))


def settled(truth: str, begun: str, anywhere: bool) -> bool:
    """Whether no more of an answer can change if it begins with the truth, or contains it.

    Args:
        truth: What is looked for.
        begun: The answer so far; its last characters may be incomplete.
        anywhere: Of `contains`; else of `begins_with`.
    """
    truth, begun = _folded(truth), _folded(begun)
    sure = len(begun) - _UNSURE
    if any(stop <= sure for start, stop in _matches(truth, begun) if anywhere or start == 0):
        return True
    same = min(sure, len(truth))
    return not anywhere and same > 0 and (begun[:same] != truth[:same] or same == len(truth))


def lines_of(truth: str) -> int:
    """How many lines a truth has, blank ones around it aside; at least one."""
    return truth.strip().count("\n") + 1


def first_lines(answer: str, count: int) -> str:
    """The first lines of an answer, from the first that is not blank."""
    return "\n".join(answer.lstrip().split("\n")[:count])


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def _matches(truth: str, answer: str) -> Iterator[tuple[int, int]]:
    """Begin and end of the truth in an answer, both folded, where it is cut out of no word."""
    if not truth:
        if not answer:
            yield 0, 0
        return
    start = answer.find(truth)
    while start >= 0:
        stop = start + len(truth)
        if not _joined(answer, start) and not _joined(answer, stop):
            yield start, stop
        start = answer.find(truth, start + 1)


def _joined(text: str, place: int) -> bool:
    """Whether a word or a number goes on across a place in a text."""
    near = text[max(0, place - 2) : place].rjust(2) + text[place : place + 2].ljust(2)
    before, after = near[1], near[2]
    if _UNSPACED.match(before) or _UNSPACED.match(after):
        return False
    if _in_word(before) and _in_word(after):
        return True
    return bool(re.match(r"\d[.,]\d", near) or re.match(r"\d(?:,\d|\.[1-9])", near[1:]))


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


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
