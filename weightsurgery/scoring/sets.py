"""What one model says of sets of questions with right and wrong answers, a value for each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from weightsurgery.errors import DataError
from weightsurgery.learning import answers, metrics
from weightsurgery.learning.data import Encoded, Example, encode_all, read_examples
from weightsurgery.learning.forward import Forced, check_lengths, teacher_forced
from weightsurgery.learning.intervals import Measurements
from weightsurgery.learning.models import context_length, quiet
from weightsurgery.learning.scores import encode_set
from weightsurgery.progress import Progress
from weightsurgery.scoring import formulas

if TYPE_CHECKING:
    from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ATTACKS",
    "Asked",
    "Likelihoods",
    "YardstickSet",
    "measured",
    "read_set",
    "truth_scores",
]

ATTACKS = ("loss", "zlib", "min_k", "min_k++")
"""How membership is inferred: each a loss, which is lower for what a model was trained on."""


@dataclass(frozen=True)
class YardstickSet:
    """Rows of one role.

    Attributes:
        name: What it is called.
        path: As given.
        role: ``forget``, ``keep`` or ``holdout``.
        examples: Its rows.
        choices: Wrong answers stand beside the right one itself, and not beside its paraphrase, as
            of real authors and world facts: the probability is then normalised over them.
    """

    name: str
    path: str
    role: str
    examples: tuple[Example, ...] = field(repr=False)
    choices: bool = False


def read_set(
    path: str | Path, name: str, role: str, tokenizer: PreTrainedTokenizerBase
) -> YardstickSet:
    """A set with what its scores take.

    Args:
        path: As for :func:`weightsurgery.learning.data.read_examples`.
        name: What to call it.
        role: ``forget``, ``keep`` or ``holdout``; the last needs no wrong answers.
        tokenizer: Renders conversations.

    Raises:
        DataError: It cannot be read, or a row lacks its wrong answers or, where others of the set
            or its role have it, the paraphrase.
    """
    rows = read_examples(path, tokenizer)
    if role == "holdout":
        return YardstickSet(name, str(path), role, tuple(rows))
    bare = next((n for n, row in enumerate(rows, 1) if not row.perturbed), None)
    if bare is not None:
        raise DataError(
            f"{path}, example {bare}: no wrong answers, which TOFU's truth ratio is made of",
            'Name the file that has them ("perturbed_answer" beside "answer", as in TOFU\'s'
            ' *_perturbed; or "perturbed" beside "completion"), each a list of texts.',
        )
    lacking = [n for n, row in enumerate(rows, 1) if row.paraphrase is None]
    if lacking and (role == "forget" or len(lacking) < len(rows)):
        raise DataError(
            f"{path}, example {lacking[0]}: no paraphrase of the right answer",
            'Write one as "paraphrased_answer" (or "paraphrase" beside "completion"): wrong answers'
            " are worded like it.",
        )
    return YardstickSet(name, str(path), role, tuple(rows), bool(lacking))


@dataclass(frozen=True)
class Likelihoods:
    """Of one row, the mean negative log-likelihood per token, end of text included, in nats.

    Attributes:
        own: Of the answer.
        right: Of its paraphrase; the same where there is none.
        wrong: Of each wrong answer.
    """

    own: float
    right: float
    wrong: tuple[float, ...]

    @property
    def log_truth_ratio(self) -> float:
        """``log R``, how much likelier the wrong answers are; see ``metrics.truth_ratio``."""
        return self.right - sum(self.wrong) / len(self.wrong)

    @property
    def truth_ratio(self) -> float:
        """``R``; infinite where float64 ends."""
        return metrics.truth_ratio(self.right, self.wrong)

    def probability(self, choices: bool) -> float:
        """Of the answer, in [0, 1]: alone, or among the choices."""
        if not choices:
            return math.exp(-self.own)
        return formulas.normalised_probability(
            math.exp(-self.own), [math.exp(-each) for each in self.wrong]
        )


@dataclass(frozen=True)
class Asked:
    """A model at work.

    Attributes:
        model: Left in evaluation mode.
        tokenizer: Its tokenizer.
        batch_size: Texts per forward pass.
        progress: Told of every batch.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 32
    progress: Progress | None = None

    def likelihoods(self, asked: YardstickSet) -> list[Likelihoods]:
        """Of each row's answer, its paraphrase and its wrong answers, in one pass over them all."""
        texts: list[Example] = []
        for row in asked.examples:
            right = () if row.paraphrase is None else (row.paraphrase,)
            every = (row.completion, *right, *row.perturbed)
            texts += [Example(row.prompt, each, row.templated) for each in every]
        losses = iter([_mean(each) for each in self._forced(asked.name, texts)])
        found = []
        for row in asked.examples:
            own = next(losses)
            other = own if row.paraphrase is None else next(losses)
            found.append(Likelihoods(own, other, tuple(next(losses) for _ in row.perturbed)))
        return found

    def answers(self, asked: YardstickSet) -> list[tuple[str, str]]:
        """Per row the truth and what the model answers; see ``learning.answers``."""
        encoded = encode_set(self.model, self.tokenizer, asked.examples, asked.name)
        truths = answers.truths(self.tokenizer, encoded)
        said = answers.answers(
            self.model, self.tokenizer, encoded, self.batch_size,
            f"generating for {asked.name}", self.progress,
        )  # fmt: skip
        return [(truth, whole) for truth, (whole, _) in zip(truths, said, strict=True)]

    def memorised(self, asked: YardstickSet) -> dict[str, Measurements]:
        """Extraction strength and exact memorisation of each answer, without its end."""
        right = [each.answer(each.right) for each in self._forced(asked.name, asked.examples)]
        return {
            "extraction_strength": measured([metrics.extraction_strength(r) for r in right]),
            "exact_memorisation": measured([metrics.token_accuracy(r) for r in right]),
        }

    def losses(self, asked: YardstickSet) -> dict[str, list[float]]:
        """Per way to infer membership a loss for each row."""
        found: dict[str, list[float]] = {name: [] for name in ATTACKS}
        for row, forced in zip(
            asked.examples, self._forced(asked.name, asked.examples, spread=True), strict=True
        ):
            assert forced.spread is not None
            loss, tokens = _mean(forced), forced.answer(forced.nll).tolist()
            mean, variance = forced.answer(forced.spread).T.tolist()
            values = (
                loss,
                formulas.zlib_loss(loss, row.completion.strip()),
                formulas.min_k(tokens),
                formulas.min_k_plus_plus(tokens, mean, variance),
            )
            for name, value in zip(ATTACKS, values, strict=True):
                found[name].append(value)
        return found

    def surprise(self, name: str, prompts: Sequence[Example], texts: Sequence[str]) -> Measurements:
        """How unlikely texts are to the model after their prompts: nats per token, by tokens.

        An empty text has none; what the model cannot read of a long one does not count.
        """
        rows = [(n, p) for n, (p, text) in enumerate(zip(prompts, texts, strict=True)) if text]
        said = [
            Example(p.prompt, texts[n] if p.templated else _parted(p.prompt, texts[n]), p.templated)
            for n, p in rows
        ]
        values: list[float | None] = [None] * len(texts)
        weights = [1.0] * len(texts)
        limit = context_length(self.model)
        with quiet():  # a tokenizer warns of what is cut here
            encoded = [_cut(row, limit) for row in encode_all(self.tokenizer, said)]
        check_lengths(self.model, encoded, name)
        for (n, _), each in zip(rows, self._passed(name, encoded), strict=True):
            tokens = each.answer(each.nll)
            values[n], weights[n] = float(tokens.mean()), len(tokens)
        return measured(values, weights, "an answer without a word has no perplexity")

    def _forced(self, name: str, rows: Sequence[Example], spread: bool = False) -> list[Forced]:
        return self._passed(name, encode_set(self.model, self.tokenizer, rows, name), spread)

    def _passed(self, name: str, encoded: Sequence[Encoded], spread: bool = False) -> list[Forced]:
        return teacher_forced(
            self.model, self.tokenizer, encoded, self.batch_size, f"scoring {name}",
            self.progress, spread,
        )  # fmt: skip


def truth_scores(
    asked: YardstickSet, found: Sequence[Likelihoods], said: Sequence[tuple[str, str]]
) -> Mapping[str, Measurements]:
    """The three scores that every set has: probability, ROUGE-L recall, truth ratio.

    The truth ratio's is ``min(R, 1/R)`` of what to forget, ``max(0, 1 − R)`` of what to keep.

    Args:
        asked: The set.
        found: Its rows' likelihoods.
        said: Its rows' truths and answers.
    """
    value = metrics.forget_truth if asked.role == "forget" else metrics.keep_truth
    recalls = [metrics.rouge_l(truth, answer) for truth, answer in said]
    why = "answers without the letters a to z or digits have no ROUGE"
    return {
        "probability": measured([each.probability(asked.choices) for each in found]),
        "rouge_l_recall": measured([each and each[0] for each in recalls], why=why),
        "truth_ratio": measured([value(each.truth_ratio) for each in found]),
    }


def measured(
    values: Sequence[float | None], weights: Sequence[float] | None = None, why: str = ""
) -> Measurements:
    """A value for each row, as the intervals take it; None where it is not defined."""
    numbers = [math.nan if value is None else value for value in values]
    ones = torch.ones(len(numbers), dtype=torch.float64)
    return Measurements(
        torch.tensor(numbers, dtype=torch.float64),
        ones if weights is None else torch.tensor(weights, dtype=torch.float64),
        why,
    )


def _mean(forced: Forced) -> float:
    return float(forced.ended(forced.nll).mean())


def _cut(row: Encoded, limit: int | None) -> Encoded:
    """What a model can read of a text: at least a token more than its prompt, or it is whole."""
    if limit is None or not row.prompt_length < limit < len(row.input_ids):
        return row
    lost = len(row.input_ids) - limit
    return Encoded(row.input_ids[:limit], row.prompt_length, max(0, row.end_length - lost))


def _parted(prompt: str, text: str) -> str:
    return text if prompt[-1:].isspace() or not prompt else f" {text}"
