"""TOFU's scores of a checkpoint: forget quality, model utility and membership inference."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import DataError
from weightsurgery.learning.evaluate import set_names
from weightsurgery.learning.intervals import Estimate, Measurements, Resampling, estimate
from weightsurgery.learning.models import load_model, load_tokenizer
from weightsurgery.progress import Progress
from weightsurgery.scoring import formulas
from weightsurgery.scoring.sets import (
    ATTACKS,
    Likelihoods,
    ModelScorer,
    Reference,
    YardstickSet,
    read_reference,
    read_set,
    truth_scores,
)

__all__ = ["SetEstimates", "Tofu", "pooled", "reference_ratios", "tofu"]

PRIV_LEAK = "min_k"
"""The attack whose AUC PrivLeak is of, as open-unlearning configures it."""

_NEEDED = (
    "Train a model as CKPT's base was, on the same data less the rows to forget, and name it by"
    " --reference; or name what 'ws evaluate --metric tofu --json' said of it."
)


@dataclass(frozen=True)
class SetEstimates:
    """Scores of one set.

    Attributes:
        name: Name of the set.
        path: As given.
        role: ``forget`` or ``keep``.
        examples: Number of rows.
        choices: Whether the probability is normalised over the wrong answers.
        scores: By name, each with its bootstrap interval.
    """

    name: str
    path: str
    role: str
    examples: int
    choices: bool
    scores: dict[str, Estimate]


@dataclass(frozen=True)
class Tofu:
    """The yardstick of one checkpoint; figures are as open-unlearning defines them.

    Attributes:
        checkpoint: As given.
        reference: The model that never saw what is to be forgotten, as given.
        sets: What to forget, then what to keep.
        forget_quality: p-value in [0, 1]; see :func:`formulas.forget_quality`.
        model_utility: In [0, 1]; see :func:`formulas.model_utility`.
        membership: AUC by attack of rows to forget against held-out ones; empty without the
            latter.
        reference_membership: The same of the reference.
        priv_leak: In percent; None without held-out rows, or where the reference's AUC is 1.
        memorisation: In [0, 1], 1 where nothing is; see :func:`formulas.memorisation`. None where a
            score that it takes is none.
        privacy: In [0, 1]; see :func:`formulas.privacy`. None without held-out rows.
        judge: Whose perplexity ``fluency`` is, as given.
        fluency: Perplexity, to the judge, of what is answered about what is to be forgotten; high
            where it is gibberish. It says nothing against the same sentence again and again.
        log_truth_ratios: Of the rows to forget, for later comparisons with this checkpoint.
        rows: SHA-256 of the rows to forget and those held out.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """

    checkpoint: str
    reference: str
    sets: tuple[SetEstimates, ...]
    forget_quality: float
    model_utility: float
    membership: dict[str, float]
    reference_membership: dict[str, float]
    priv_leak: float | None
    memorisation: float | None
    privacy: float | None
    judge: str | None
    fluency: Estimate | None
    log_truth_ratios: tuple[float, ...]
    rows: str
    seed: int
    resamples: int


def tofu(
    checkpoint: str | Path,
    forget: Sequence[str | Path],
    keep: Sequence[str | Path],
    reference: str | Path | None,
    *,
    holdout: Sequence[str | Path] = (),
    judge: str | Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    resamples: int = 2000,
    progress: Progress | None = None,
) -> Tofu:
    """Scores a checkpoint by TOFU's metrics; one model is held at a time.

    Differences from open-unlearning: an answer is the model's first line (of a truth of several
    lines as many), of at most 32 tokens more than the set's longest truth, where theirs has up to
    200; extraction strength is 0 and not 1/T where not even the last token follows; a chat
    template's end of turn, however many tokens it has, is one end.

    Args:
        checkpoint: Directory or `org/name[@revision]` of a causal language model.
        forget: Sets with wrong answers and paraphrases; their rows are one sample.
        keep: Sets with wrong answers; see :class:`YardstickSet` for those without paraphrases.
        reference: A model trained without the rows to forget; or a JSON file with what
            ``ws evaluate --metric tofu --json`` said of it. The checkpoint itself to measure the
            reference.
        holdout: Rows that no model saw, for membership inference.
        judge: A checkpoint to say how fluent the answers are; best the base.
        batch_size: Examples per forward pass.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        progress: Called after every batch.

    Raises:
        DataError: A set cannot be read or lacks what its scores take, there is none to forget or
            to keep, no reference, or one that was scored on other rows.
        SourceError: A checkpoint cannot be found or loaded.
        NonFiniteError: A model's predictions are NaN.
        WeightSurgeryError: A library of the extra ``eval`` is missing.
    """
    if not forget or not keep:
        lacking = "--keep" if forget else "--forget"
        raise DataError(f"TOFU's yardstick without {lacking}", f"Name a set with {lacking}.")
    if reference is None:
        raise DataError("forget quality without a reference to compare with", _NEEDED)
    if batch_size < 1 or resamples < 1:
        raise DataError("a batch or a bootstrap of none", "Give whole numbers from 1.")
    directory = resolve_source(checkpoint).path
    sets = _Sets.read(load_tokenizer(directory), forget, keep, holdout)
    same = _same_checkpoint(reference, directory)
    reference_figures = None
    if not same:
        reference_figures = _reference(reference, sets, batch_size, device, progress)
    model, tokenizer = load_model(directory, device)
    scorer = ModelScorer(model, tokenizer, batch_size, progress)
    resampling = Resampling(seed, resamples)
    likelihoods = scorer.likelihoods(sets.forget)
    figures = _comparison(str(reference), scorer, sets, likelihoods)
    reference_figures = figures if reference_figures is None else reference_figures
    answered = scorer.answers(sets.forget)
    estimates = [_estimates(sets.forget, scorer, likelihoods, answered, resampling)]
    for keep_set in sets.keep:
        estimates.append(
            _estimates(
                keep_set, scorer, scorer.likelihoods(keep_set), scorer.answers(keep_set), resampling
            )
        )
    del scorer, model
    fluency = None
    if judge is not None:
        fluency = _fluency(judge, sets.forget, answered, batch_size, device, resampling)
    leak = privacy = None
    if sets.holdout is not None:
        leak = formulas.priv_leak(
            figures.membership[PRIV_LEAK], reference_figures.membership[PRIV_LEAK]
        )
        privacy = formulas.privacy(figures.membership, reference_figures.membership)
    return Tofu(
        str(checkpoint),
        str(reference),
        tuple(estimates),
        formulas.forget_quality(figures.log_truth_ratios, reference_figures.log_truth_ratios),
        _utility(estimates),
        dict(figures.membership),
        dict(reference_figures.membership),
        leak,
        _memorisation(estimates[0], figures.log_truth_ratios),
        privacy,
        None if judge is None else str(judge),
        fluency,
        tuple(figures.log_truth_ratios),
        sets.digest,
        seed,
        resamples,
    )


@dataclass(frozen=True)
class _Sets:
    """All sets, read before a model is loaded."""

    forget: YardstickSet
    keep: tuple[YardstickSet, ...]
    holdout: YardstickSet | None

    @classmethod
    def read(
        cls,
        tokenizer: Any,
        forget: Sequence[str | Path],
        keep: Sequence[str | Path],
        holdout: Sequence[str | Path],
    ) -> _Sets:
        names = set_names([*forget, *keep, *holdout])
        roles = [*["forget"] * len(forget), *["keep"] * len(keep), *["holdout"] * len(holdout)]
        loaded = [
            read_set(path, name, role, tokenizer)
            for path, name, role in zip([*forget, *keep, *holdout], names, roles, strict=True)
        ]

        def of(role: str) -> list[YardstickSet]:
            return [dataset for dataset in loaded if dataset.role == role]

        return cls(
            pooled(of("forget")), tuple(of("keep")), pooled(of("holdout")) if holdout else None
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the rows that a reference is scored on."""
        rows = [
            [row.prompt, row.completion, row.paraphrase, *row.perturbed]
            for dataset in (self.forget, self.holdout)
            if dataset is not None
            for row in dataset.examples
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def pooled(sets: Sequence[YardstickSet]) -> YardstickSet:
    """Several files of one role as one sample."""
    return replace(
        sets[0],
        name=" + ".join(dataset.name for dataset in sets),
        path=" + ".join(dataset.path for dataset in sets),
        examples=tuple(row for dataset in sets for row in dataset.examples),
    )


def _comparison(
    name: str, scorer: ModelScorer, sets: _Sets, likelihoods: Sequence[Likelihoods]
) -> Reference:
    """What models are compared by: truth ratios, and AUCs of membership attacks."""
    ratios = [row.log_truth_ratio for row in likelihoods]
    membership = {}
    if sets.holdout is not None:
        members, others = scorer.losses(sets.forget), scorer.losses(sets.holdout)
        membership = {attack: formulas.auc(members[attack], others[attack]) for attack in ATTACKS}
    return Reference(name, sets.digest, ratios, membership)


def _estimates(
    dataset: YardstickSet,
    scorer: ModelScorer,
    likelihoods: Sequence[Likelihoods],
    answered: Sequence[tuple[str, str]],
    resampling: Resampling,
) -> SetEstimates:
    rows: dict[str, Measurements] = dict(truth_scores(dataset, likelihoods, answered))
    if dataset.role == "forget":
        rows |= scorer.memorised(dataset)
    scores = {name: estimate(values, resampling) for name, values in rows.items()}
    return SetEstimates(
        dataset.name, dataset.path, dataset.role, len(dataset.examples), dataset.choices, scores
    )


def _utility(estimates: Sequence[SetEstimates]) -> float:
    values = []
    for keep_set in estimates:
        if keep_set.role != "keep":
            continue
        for name, score in keep_set.scores.items():
            if score.value is None:
                raise DataError(f"{keep_set.name}: no {name}: {score.why}", "Leave this set out.")
            values.append(score.value)
    return formulas.model_utility(values)


def _memorisation(forget: SetEstimates, log_ratios: Sequence[float]) -> float | None:
    strength, exact, probability = (
        forget.scores[name].value
        for name in ("extraction_strength", "exact_memorisation", "probability")
    )
    if strength is None or exact is None or probability is None:
        return None
    return formulas.memorisation(strength, exact, probability, log_ratios)


def _fluency(
    judge: str | Path,
    forget: YardstickSet,
    answered: Sequence[tuple[str, str]],
    batch_size: int,
    device: str,
    resampling: Resampling,
) -> Estimate:
    model, tokenizer = load_model(resolve_source(judge).path, device)
    scorer = ModelScorer(model, tokenizer, batch_size)
    surprise = scorer.surprise(forget.name, forget.examples, [answer for _, answer in answered])
    return estimate(surprise, resampling, math.exp)


def reference_ratios(
    reference: str | Path,
    forget: YardstickSet,
    *,
    batch_size: int = 32,
    device: str = "auto",
    progress: Progress | None = None,
) -> Sequence[float]:
    """Logarithms of a reference's truth ratios; see :func:`tofu` for what it may be, and raises.

    Args:
        reference: A model trained without the rows, or what was said of one.
        forget: The rows; of a document, the very ones that it was asked.
        batch_size: Examples per forward pass.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        progress: Called after every batch.
    """
    found = _reference(reference, _Sets(forget, (), None), batch_size, device, progress)
    return found.log_truth_ratios


def _same_checkpoint(reference: str | Path, directory: Path) -> bool:
    return not _is_document(reference) and resolve_source(reference).path == directory


def _is_document(reference: str | Path) -> bool:
    return str(reference).endswith(".json") and os.path.isfile(os.path.expanduser(reference))


def _reference(
    reference: str | Path, sets: _Sets, batch_size: int, device: str, progress: Progress | None
) -> Reference:
    if _is_document(reference):
        recorded = read_reference(reference)
        if recorded.rows != sets.digest:
            raise DataError(
                f"{reference}: was asked other rows to forget or to hold out",
                "Score the reference on the same --forget and --holdout, or name the checkpoint"
                " itself.",
            )
        return recorded
    model, tokenizer = load_model(resolve_source(reference).path, device)
    scorer = ModelScorer(model, tokenizer, batch_size, progress)
    return _comparison(str(reference), scorer, sets, scorer.likelihoods(sets.forget))
