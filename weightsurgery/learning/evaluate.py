"""Scores of a checkpoint on data to forget and data to keep, before and after an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import DataError
from weightsurgery.learning import in_context, intervals
from weightsurgery.learning.answers import headline
from weightsurgery.learning.data import Example, read_examples
from weightsurgery.learning.intervals import Estimate, Measurements, Resampling
from weightsurgery.learning.metric_names import DEFAULT, METRICS, choose
from weightsurgery.learning.models import DeviceMap, checked_map, load_model, load_tokenizer
from weightsurgery.learning.scores import chance, score
from weightsurgery.progress import Progress

__all__ = [
    "Contexts",
    "Evaluation",
    "SetScores",
    "check_options",
    "check_same",
    "estimates",
    "evaluate",
    "set_names",
]


@dataclass(frozen=True)
class SetScores:
    """Scores of a checkpoint on one set.

    Attributes:
        name: The file's name without ending, or its path where two share that.
        path: As given.
        role: `forget` or `keep`.
        examples: How many.
        chance: What guessing scores; see `scores.chance`.
        scores: Per metric its mean.
        before: The same of the checkpoint compared with; None if there is none.
        forgetting: Per metric that is a share, raw forgetting in percent; of sets to forget.
        normalised_forgetting: The same in percent of what exceeds chance; of exact match and of
            the headline alone, whose chance is known.
        drift: Per metric the relative change either way, as a fraction; of sets to keep.
        headline: The metric that says what the checkpoint knows of the set; see
            `answers.headline`.
    """

    name: str
    path: str
    role: str
    examples: int
    chance: float
    scores: dict[str, Estimate]
    before: dict[str, Estimate] | None = None
    forgetting: dict[str, Estimate] | None = None
    normalised_forgetting: dict[str, Estimate] | None = None
    drift: dict[str, Estimate] | None = None
    headline: str = "begins_with"


@dataclass(frozen=True)
class Contexts:
    """That the model was prompted in a context, which is what forgets: its weights stay.

    Attributes:
        method: One of `in_context.METHODS`.
        shots: Correct examples in each context.
        weights: "unchanged", for those who read the document alone.
    """

    method: str
    shots: int
    weights: str = "unchanged"


@dataclass(frozen=True)
class Evaluation:
    """Scores of a checkpoint on every set, and their change from another checkpoint's.

    Attributes:
        checkpoint: As given.
        against: The checkpoint compared with, as given.
        sets: First those to forget, then those to keep.
        n: Length of the n-grams of `el`.
        require_end: Whether an exact match had to end with EOS.
        seed: Of the bootstrap, and of the contexts.
        resamples: Of the bootstrap.
        contexts: What the checkpoint was prompted in; the one compared with has none.
    """

    checkpoint: str
    against: str | None
    sets: tuple[SetScores, ...]
    n: int
    require_end: bool
    seed: int
    resamples: int
    contexts: Contexts | None = None


def evaluate(
    checkpoint: str | Path,
    forget: Sequence[str | Path] = (),
    keep: Sequence[str | Path] = (),
    against: str | Path | None = None,
    *,
    metrics: Sequence[str] = DEFAULT,
    chance_of: float | None = None,
    n: int = 10,
    require_end: bool = True,
    batch_size: int = 32,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    seed: int = 0,
    resamples: int = 2000,
    contexts: Contexts | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a checkpoint on sets to forget and to keep, and against the one it was made from.

    One model is held at a time, in pieces where processes were launched to share it; each then runs
    all examples. Forgetting and drift come with intervals of a paired bootstrap:
    both models are measured on the same resampled examples.

    Args:
        checkpoint: Directory or `org/name[@revision]` of a causal language model.
        forget: Data sets that should be forgotten; see `data.read_examples`.
        keep: Data sets that should stay as they are.
        against: The checkpoint before the edit.
        metrics: Words for `scores.choose`.
        chance_of: What guessing scores, in [0, 1); default: `scores.chance` of each set.
        n: Length of the n-grams of `el`.
        require_end: An exact match must also stop after the completion.
        batch_size: Examples per forward pass.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        device_map: Spread the models instead; see `models.load_model`.
        seed: Of the bootstrap, and of the contexts.
        resamples: Of the bootstrap.
        contexts: Prompt the checkpoint, not the one before the edit, in such contexts; see
            `in_context.Icul`.
        progress: Called after every batch.

    Returns:
        The scores.

    Raises:
        DataError: A set cannot be read or scored, or there is none, or an option is out of range.
        SourceError: A checkpoint cannot be found or loaded.
        NonFiniteError: A model's predictions are NaN.
        SelectionError: No such metric.
    """
    names = choose(metrics)
    if device_map is not None:
        checked_map(device_map)
    check_options(forget, keep, chance_of, n, batch_size, resamples)
    _check_contexts(contexts)
    ask = partial(
        score, names=names, n=n, batch_size=batch_size, require_end=require_end, progress=progress
    )
    labels = set_names([*forget, *keep])
    roles = ["forget"] * len(forget) + ["keep"] * len(keep)
    paths = [*forget, *keep]
    measured: list[list[dict[str, Measurements]]] = []
    sets: list[list[Example]] = []
    for name in (checkpoint, against):
        if name is None:
            continue
        directory = resolve_source(name).path
        # All sets are read first: a fault in the last one should not cost a model's loading.
        tokenizer = load_tokenizer(directory)
        read = [read_examples(path, tokenizer) for path in paths]
        if not sets:
            sets = read
        check_same(sets, read, labels)
        if contexts is not None and not measured:
            read = _in_contexts(read, len(forget), contexts, seed)
        model, tokenizer = load_model(directory, device, device_map, shared=True)
        measured.append(
            [
                ask(model, tokenizer, rows, where=label, forget=role == "forget")
                for rows, label, role in zip(read, labels, roles, strict=True)
            ]
        )
        del model
    drawn = Resampling(seed, resamples)
    scored = []
    for place, (path, label, role) in enumerate(zip(paths, labels, roles, strict=True)):
        guess = chance(sets[place]) if chance_of is None else chance_of
        main = headline(sets[place])
        after = measured[0][place]
        before = measured[1][place] if against is not None else None
        scored.append(
            SetScores(
                label,
                str(path),
                role,
                len(sets[place]),
                guess,
                estimates(after, drawn),
                **({} if before is None else _compared(before, after, role, guess, main, drawn)),
                headline=main,
            )
        )
    return Evaluation(
        str(checkpoint),
        None if against is None else str(against),
        tuple(scored),
        n,
        require_end,
        seed,
        resamples,
        contexts,
    )


def _in_contexts(
    sets: Sequence[list[Example]], forget: int, contexts: Contexts, seed: int
) -> list[list[Example]]:
    """The sets, of which the first are to be forgotten, as the model will be prompted."""
    keep = [example for rows in sets[forget:] for example in rows]
    icul = in_context.Icul(sets[:forget], keep, contexts.shots, seed)
    return [icul.prompts(rows) for rows in sets]


def _check_contexts(contexts: Contexts | None) -> None:
    if contexts is not None and contexts.method not in in_context.METHODS:
        raise DataError(
            f"forgetting in a context by {contexts.method!r}",
            f"Choose from: {', '.join(in_context.METHODS)}.",
        )


def check_options(
    forget: Sequence[str | Path],
    keep: Sequence[str | Path],
    chance_of: float | None,
    n: int,
    batch_size: int,
    resamples: int,
) -> None:
    """Refuses what cannot be scored, before anything is loaded; see `evaluate`.

    Raises:
        DataError: There is no set, or an option is out of range.
    """
    if not forget and not keep:
        raise DataError("no data to score", "Name a set with --forget or --keep.")
    if chance_of is not None and not 0 <= chance_of < 1:
        raise DataError(f"a chance of {chance_of}", "Give a share from 0 to below 1.")
    for what, number in (("n-grams", n), ("a batch", batch_size), ("a bootstrap", resamples)):
        if number < 1:
            raise DataError(f"{what} of {number}", "Give a whole number from 1.")


def set_names(paths: Sequence[str | Path]) -> list[str]:
    """Names of data sets: the file's name without ending, or its path where two share that."""
    stems = [Path(path).name.removesuffix(Path(path).suffix) for path in paths]
    return [
        stem if stems.count(stem) == 1 else str(path)
        for stem, path in zip(stems, paths, strict=True)
    ]


def check_same(
    first: Sequence[Sequence[Example]], again: Sequence[Sequence[Example]], labels: Sequence[str]
) -> None:
    """Pairing needs the same examples: another template could split a conversation otherwise.

    Raises:
        DataError: A set differs in how many it gives.
    """
    for label, rows, others in zip(labels, first, again, strict=True):
        if len(rows) != len(others):
            raise DataError(
                f"{label}: gives {len(rows)} examples with one tokenizer and {len(others)} with"
                " the other",
                "Compare models of the same family.",
            )


def estimates(measured: Mapping[str, Measurements], drawn: Resampling) -> dict[str, Estimate]:
    """The mean of each metric with its interval."""
    return {
        name: intervals.estimate(each, drawn, METRICS[name].transform)
        for name, each in measured.items()
    }


def _compared(
    before: Mapping[str, Measurements],
    after: Mapping[str, Measurements],
    role: str,
    guess: float,
    main: str,
    drawn: Resampling,
) -> dict[str, dict[str, Estimate]]:
    def changes(change: intervals.Change, names: Sequence[str]) -> dict[str, Estimate]:
        return {
            name: intervals.estimate_change(
                before[name], after[name], change, drawn, METRICS[name].transform
            )
            for name in names
        }

    comparison = {"before": estimates(before, drawn)}
    if role == "keep":
        return comparison | {"drift": changes(intervals.drift, list(after))}
    comparison["forgetting"] = changes(
        intervals.forgetting, [name for name in after if METRICS[name].share]
    )
    comparison["normalised_forgetting"] = changes(
        partial(intervals.normalised_forgetting, chance=guess),
        [name for name in after if name in ("exact_match", main)],
    )
    return comparison
