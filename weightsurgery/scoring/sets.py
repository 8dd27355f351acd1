"""Scores of a model, and of the reference, on questions with right and wrong answers, by row."""

from __future__ import annotations

import json
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
    "Likelihoods",
    "ModelScorer",
    "Reference",
    "YardstickSet",
    "checked_set",
    "measured",
    "read_reference",
    "read_set",
    "truth_scores",
]

ATTACKS = ("loss", "zlib", "min_k", "min_k++")
"""Membership attacks: losses that are lower for what a model was trained on."""


@dataclass(frozen=True)
class YardstickSet:
    """Rows of one role.

    Attributes:
        name: Name of the set.
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
    """Read a set and check that it has what its scores need.

    Args:
        path: As for :func:`weightsurgery.learning.data.read_examples`.
        name: Name of the set.
        role: ``forget``, ``keep`` or ``holdout``; the last needs no wrong answers.
        tokenizer: Renders conversations.

    Raises:
        DataError: It cannot be read, or a row lacks its wrong answers or, where others of the set
            or its role have it, the paraphrase.
    """
    return checked_set(read_examples(path, tokenizer), path, name, role)


def checked_set(rows: Sequence[Example], path: str | Path, name: str, role: str) -> YardstickSet:
    """The same of rows that were read already; see :func:`read_set`."""
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
    """Mean negative log-likelihoods per token of one row, end of text included, in nats.

    Attributes:
        answer: Of the answer.
        paraphrase: Of its paraphrase; of the answer where there is none.
        wrong: Of each wrong answer.
    """

    answer: float
    paraphrase: float
    wrong: tuple[float, ...]

    @property
    def log_truth_ratio(self) -> float:
        """``log R``, how much likelier the wrong answers are; see ``metrics.truth_ratio``."""
        return self.paraphrase - sum(self.wrong) / len(self.wrong)

    @property
    def truth_ratio(self) -> float:
        """``R``; infinite where float64 ends."""
        return metrics.truth_ratio(self.paraphrase, self.wrong)

    def probability(self, choices: bool) -> float:
        """Probability of the answer in [0, 1]: alone, or among the choices."""
        if not choices:
            return math.exp(-self.answer)
        return formulas.normalised_probability(
            math.exp(-self.answer), [math.exp(-nll) for nll in self.wrong]
        )


@dataclass(frozen=True)
class ModelScorer:
    """Scores a model on sets.

    Attributes:
        model: Left in evaluation mode.
        tokenizer: Its tokenizer.
        batch_size: Texts per forward pass.
        progress: Called after every batch.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 32
    progress: Progress | None = None

    def likelihoods(self, dataset: YardstickSet) -> list[Likelihoods]:
        """Of each row's answer, paraphrase and wrong answers, in one pass over all of them."""
        texts: list[Example] = []
        for row in dataset.examples:
            right = () if row.paraphrase is None else (row.paraphrase,)
            completions = (row.completion, *right, *row.perturbed)
            texts += [Example(row.prompt, text, row.templated) for text in completions]
        losses = iter([_mean(forced) for forced in self._forced(dataset.name, texts)])
        likelihoods = []
        for row in dataset.examples:
            answer = next(losses)
            paraphrase = answer if row.paraphrase is None else next(losses)
            likelihoods.append(
                Likelihoods(answer, paraphrase, tuple(next(losses) for _ in row.perturbed))
            )
        return likelihoods

    def answers(self, dataset: YardstickSet) -> list[tuple[str, str]]:
        """Per row the truth and the model's answer; see ``learning.answers``."""
        encoded = encode_set(self.model, self.tokenizer, dataset.examples, dataset.name)
        truths = answers.truths(self.tokenizer, encoded)
        generated = answers.answers(
            self.model, self.tokenizer, encoded, self.batch_size,
            f"generating for {dataset.name}", self.progress,
        )  # fmt: skip
        return [(truth, text) for truth, (text, _) in zip(truths, generated, strict=True)]

    def memorised(self, dataset: YardstickSet) -> dict[str, Measurements]:
        """Extraction strength and exact memorisation of each answer, without its end."""
        right = [
            forced.answer(forced.right) for forced in self._forced(dataset.name, dataset.examples)
        ]
        return {
            "extraction_strength": measured([metrics.extraction_strength(r) for r in right]),
            "exact_memorisation": measured([metrics.token_accuracy(r) for r in right]),
        }

    def losses(self, dataset: YardstickSet) -> dict[str, list[float]]:
        """By membership attack, the loss of each row."""
        losses: dict[str, list[float]] = {name: [] for name in ATTACKS}
        for row, forced in zip(
            dataset.examples, self._forced(dataset.name, dataset.examples, spread=True), strict=True
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
                losses[name].append(value)
        return losses

    def surprise(self, name: str, prompts: Sequence[Example], texts: Sequence[str]) -> Measurements:
        """How unlikely texts are to the model after their prompts: nats per token, by tokens.

        An empty text has none; what the model cannot read of a long one does not count.
        """
        rows = [(n, p) for n, (p, text) in enumerate(zip(prompts, texts, strict=True)) if text]
        examples = [
            Example(p.prompt, texts[n] if p.templated else _spaced(p.prompt, texts[n]), p.templated)
            for n, p in rows
        ]
        values: list[float | None] = [None] * len(texts)
        weights = [1.0] * len(texts)
        limit = context_length(self.model)
        with quiet():  # a tokenizer warns of what is cut here
            encoded = [_cut(row, limit) for row in encode_all(self.tokenizer, examples)]
        check_lengths(self.model, encoded, name)
        for (n, _), forced in zip(rows, self._passed(name, encoded), strict=True):
            tokens = forced.answer(forced.nll)
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
    dataset: YardstickSet, likelihoods: Sequence[Likelihoods], answered: Sequence[tuple[str, str]]
) -> Mapping[str, Measurements]:
    """The three scores that every set has: probability, ROUGE-L recall, truth ratio.

    The truth ratio's is ``min(R, 1/R)`` of what to forget, ``max(0, 1 − R)`` of what to keep.

    Args:
        dataset: The set.
        likelihoods: Its rows' likelihoods.
        answered: Its rows' truths and answers.
    """
    value = metrics.forget_truth if dataset.role == "forget" else metrics.keep_truth
    recalls = [metrics.rouge_l(truth, answer) for truth, answer in answered]
    why = "answers without the letters a to z or digits have no ROUGE"
    return {
        "probability": measured([row.probability(dataset.choices) for row in likelihoods]),
        "rouge_l_recall": measured([recall and recall[0] for recall in recalls], why=why),
        "truth_ratio": measured([value(row.truth_ratio) for row in likelihoods]),
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
    """Cut a row to the model's context, if that leaves a token beyond its prompt."""
    if limit is None or not row.prompt_length < limit < len(row.input_ids):
        return row
    lost = len(row.input_ids) - limit
    return Encoded(row.input_ids[:limit], row.prompt_length, max(0, row.end_length - lost))


def _spaced(prompt: str, text: str) -> str:
    return text if prompt[-1:].isspace() or not prompt else f" {text}"


@dataclass(frozen=True)
class Reference:
    """Scores of the model that never saw what is to be forgotten.

    Attributes:
        name: As given.
        rows: Digest of the rows it was scored on.
        log_truth_ratios: Of the rows to forget, in order.
        membership: AUC by attack; empty without held-out rows.
    """

    name: str
    rows: str
    log_truth_ratios: Sequence[float]
    membership: Mapping[str, float]


def read_reference(path: str | Path) -> Reference:
    """The scores that an earlier run measured of a reference.

    Args:
        path: A file with what ``ws evaluate --metric tofu --json`` printed.

    Raises:
        DataError: The file holds no such scores.
    """
    try:
        document = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        scores = document["tofu"]
        return Reference(
            str(path), scores["rows"], list(scores["log_truth_ratios"]), dict(scores["membership"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no reference: {type(error).__name__}: {error}",
            "Name a checkpoint, or the output of 'ws evaluate REFERENCE --metric tofu --json'.",
        ) from error
