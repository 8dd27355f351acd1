"""A model's scores on one set of examples, and what each metric needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.errors import DataError, NonFiniteError
from weightsurgery.learning import answers, metrics
from weightsurgery.learning.data import Encoded, Example, encode
from weightsurgery.learning.forward import Forced, check_lengths, greedy, teacher_forced
from weightsurgery.learning.intervals import Measurements
from weightsurgery.learning.metric_names import METRICS
from weightsurgery.progress import Progress

__all__ = ["chance", "encode_set", "score"]


_ROUGE = ("rouge_l_recall", "rouge_l_f")


def chance(examples: Sequence[Example]) -> float:
    """The score of the best constant answer: the most frequent completion's share.

    1 / examples where all completions differ. Who tells from a prompt which kind of answer is
    wanted can guess better: where that matters, give the figure by hand.
    """
    counted = Counter(example.completion for example in examples)
    return max(counted.values()) / counted.total()


def encode_set(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    where: str,
) -> list[Encoded]:
    """Turns a set into tokens that the model can read.

    Raises:
        DataError: An example has no tokens or too many; named by set and number, from 1.
    """
    encoded = []
    for number, example in enumerate(examples, start=1):
        try:
            encoded.append(encode(tokenizer, example))
        except DataError as error:
            raise DataError(f"{where}, example {number}: {error.what}", error.remedy) from error
    check_lengths(model, encoded, where)
    return encoded


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    names: Collection[str] = ("exact_match",),
    *,
    where: str = "the data",
    forget: bool = True,
    n: int = 10,
    batch_size: int = 32,
    require_end: bool = True,
    progress: Progress | None = None,
) -> dict[str, Measurements]:
    """Scores a model on every example of a set.

    `begins_with` and `contains` are about the model's own answer; see `answers`. `exact_match` and
    `token_accuracy` are about the completion and its EOS, or without it for `require_end=False`;
    `nll`, `perplexity`, `probability` and `probability_per_token` (its geometric mean, `p^(1/T)`
    of TOFU, Maini et al. 2024) about the completion without it. `token_accuracy`, `nll` and
    `perplexity` are weighted by tokens. `rouge_l_recall` compares the completion with the whole
    answer; `rouge_l_f`, for which all that is said beyond it is wrong, with at most as many tokens
    as the set's longest has. `ma`, `el` and `es` are about the completion without EOS, every
    example counting the same; of a `{"text": ...}` that is the whole text, as their authors have
    it. `truth_ratio` is TOFU's score of it: `min(R, 1/R)` on data to forget, else `max(0, 1 - R)`.

    Args:
        model: A causal language model; left in evaluation mode.
        tokenizer: Its tokenizer.
        examples: At least one.
        names: Out of `METRICS`.
        where: What to call the set in messages and to `progress`.
        forget: Whether the set is to be forgotten, for the truth ratio.
        n: Of `el`: a completion of fewer tokens has none.
        batch_size: Examples per forward pass.
        require_end: The model must also stop after the completion, by the tokenizer's EOS.
        progress: Called after every batch.

    Returns:
        Per name the values of all examples, in their order.

    Raises:
        DataError: There are no examples, or one has no tokens or too many.
        NonFiniteError: The model's predictions are NaN.
        WeightSurgeryError: `rouge-score` is wanted and not installed.
    """
    if not examples:
        raise DataError(f"{where}: holds no examples", "Name a set with at least one.")
    encoded = encode_set(model, tokenizer, examples, where)
    run = _Run(model, tokenizer, batch_size, where, progress)
    forced = run.forced(encoded)
    measured = _from_one_pass(forced, require_end)
    textual = {"begins_with", "contains"} & set(names)
    rouge = bool({*_ROUGE} & set(names))
    if rouge or len(textual) > 1:
        measured |= _from_answers(run, encoded, rouge)
    for name in textual - set(measured):
        # Alone it is what edits are chosen by, again and again: no more is generated than needed.
        right = run.right(encoded, forced, name == "contains")
        measured[name] = _measured([float(each) for each in right])
    if "el" in names:
        measured["el"] = _likelihood(run, encoded, forced, n)
    if "truth_ratio" in names:
        measured["truth_ratio"] = _truth(run, examples, forget)
    return {name: measured[name] for name in METRICS if name in names}


@dataclass(frozen=True)
class _Run:
    """A model at work on one set."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    where: str
    progress: Progress | None

    def forced(self, encoded: Sequence[Encoded]) -> list[Forced]:
        try:
            return teacher_forced(
                self.model, self.tokenizer, encoded, self.batch_size,
                f"scoring {self.where}", self.progress,
            )  # fmt: skip
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.where}: {error.what}", error.remedy) from error

    def answers(self, encoded: Sequence[Encoded]) -> list[tuple[str, str]]:
        return answers.answers(
            self.model, self.tokenizer, encoded, self.batch_size,
            f"generating for {self.where}", self.progress,
        )  # fmt: skip

    def right(
        self, encoded: Sequence[Encoded], forced: Sequence[Forced], anywhere: bool
    ) -> list[bool]:
        return answers.right_answers(
            self.model, self.tokenizer, encoded, forced, [anywhere] * len(encoded),
            self.batch_size, f"generating for {self.where}", self.progress,
        )  # fmt: skip

    def greedy(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[list[int]]:
        return greedy(
            self.model, self.tokenizer, prompts, limits, self.batch_size,
            f"generating for {self.where}", self.progress,
        )  # fmt: skip


def _measured(
    values: Sequence[float | None], weights: Sequence[float] | None = None, why: str = ""
) -> Measurements:
    numbers = [math.nan if value is None else value for value in values]
    ones = [1.0] * len(numbers)
    return Measurements(
        torch.tensor(numbers, dtype=torch.float64),
        torch.tensor(ones if weights is None else weights, dtype=torch.float64),
        why,
    )


def _from_one_pass(forced: Sequence[Forced], require_end: bool) -> dict[str, Measurements]:
    rights = [f.ended(f.right) if require_end else f.answer(f.right) for f in forced]
    answers = [each.answer(each.right) for each in forced]
    losses = [each.answer(each.nll) for each in forced]
    nll = _measured([float(each.mean()) for each in losses], [len(each) for each in losses])
    return {
        "exact_match": _measured([metrics.exact_match(right) for right in rights]),
        "token_accuracy": _measured(
            [metrics.token_accuracy(right) for right in rights], [len(each) for each in rights]
        ),
        "nll": nll,
        "perplexity": nll,
        "probability": _measured([math.exp(-float(each.sum())) for each in losses]),
        "probability_per_token": _measured([math.exp(-float(each.mean())) for each in losses]),
        "ma": _measured([metrics.token_accuracy(right) for right in answers]),
        "es": _measured([metrics.extraction_strength(right) for right in answers]),
    }


def _from_answers(run: _Run, encoded: Sequence[Encoded], rouge: bool) -> dict[str, Measurements]:
    wanted, generated = answers.truths(run.tokenizer, encoded), run.answers(encoded)
    pairs = [(truth, answer) for truth, (answer, _) in zip(wanted, generated, strict=True)]
    measured = {
        "begins_with": _measured([float(metrics.begins_with(*each)) for each in pairs]),
        "contains": _measured([float(metrics.contains(*each)) for each in pairs]),
    }
    if rouge:
        why = "completions without the letters a to z or digits have no ROUGE"
        recalls = [metrics.rouge_l(*each) for each in pairs]
        short = [(truth, part) for truth, (_, part) in zip(wanted, generated, strict=True)]
        scores = [metrics.rouge_l(*each) for each in short]
        measured["rouge_l_recall"] = _measured([each and each[0] for each in recalls], why=why)
        measured["rouge_l_f"] = _measured([each and each[1] for each in scores], why=why)
    return measured


def _likelihood(
    run: _Run, encoded: Sequence[Encoded], forced: Sequence[Forced], n: int
) -> Measurements:
    labels = [each.answer(each.labels).tolist() for each in forced]
    # Where the model leaves a completion, and with too little ahead of it for an n-gram none.
    places = [
        (index, place)
        for index, row in enumerate(forced)
        if len(labels[index]) >= n
        for place in metrics.mismatches(row.answer(row.right))
    ]
    prompts = [
        encoded[index].input_ids[: encoded[index].prompt_length] + labels[index][:place]
        for index, place in places
    ]
    limits = [len(labels[index]) - place for index, place in places]
    departures: list[dict[int, list[int]]] = [{} for _ in forced]
    for (index, place), tokens in zip(places, run.greedy(prompts, limits), strict=True):
        departures[index][place] = tokens
    values = [
        metrics.extraction_likelihood(completion, metrics.continuations(completion, begun), n)
        if len(completion) >= n
        else None
        for completion, begun in zip(labels, departures, strict=True)
    ]
    return _measured(values, why=f"completions of fewer than {n} tokens have no EL_{n}")


def _truth(run: _Run, examples: Sequence[Example], forget: bool) -> Measurements:
    rows: list[Example] = []
    for example in (each for each in examples if each.perturbed):
        right = example.completion if example.paraphrase is None else example.paraphrase
        rows += [Example(example.prompt, text) for text in (right, *example.perturbed)]
    encoded = encode_set(run.model, run.tokenizer, rows, f"{run.where} (perturbed)")
    means = iter([float(each.nll.mean()) for each in run.forced(encoded)])
    value = metrics.forget_truth if forget else metrics.keep_truth
    values = [
        value(metrics.truth_ratio(next(means), [next(means) for _ in example.perturbed]))
        if example.perturbed
        else None
        for example in examples
    ]
    return _measured(values, why='rows without "perturbed" completions have no truth ratio')
