"""Does it stay forgotten? Scores of a checkpoint before and after an attack, beside a control.

Nothing is written: the attacked weights live in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import EditError, NonFiniteError
from weightsurgery.learning.attacks import (
    ROUNDINGS,
    check_relearning,
    check_rounding,
    quantised,
    relearn,
)
from weightsurgery.learning.data import Example, read_examples
from weightsurgery.learning.evaluate import check_options, set_names
from weightsurgery.learning.intervals import Resampling
from weightsurgery.learning.metric_names import DEFAULT, choose
from weightsurgery.learning.models import DeviceMap, load_model, load_tokenizer, refuse_offloaded
from weightsurgery.learning.placement import refuse_distributed
from weightsurgery.learning.scores import score
from weightsurgery.learning.strangers import special_texts
from weightsurgery.learning.subjects import part_of
from weightsurgery.procedures.attack_scores import AttackScores, Yardstick, asked
from weightsurgery.procedures.attacked import Attack, ScoredSets, States, attacked_sets
from weightsurgery.progress import Progress

__all__ = ["attack_quantize", "attack_relearn"]


def attack_relearn(
    checkpoint: str | Path,
    forget: Sequence[str | Path],
    keep: Sequence[str | Path] = (),
    against: str | Path | None = None,
    *,
    steps: int = 40,
    learning_rate: float = 5e-4,
    batch_size: int = 64,
    fraction: float = 0.5,
    train: Sequence[str | Path] = (),
    looks: Sequence[int] = (),
    score_batch: int | None = None,
    reference: str | Path | None = None,
    metrics: Sequence[str] = DEFAULT,
    n: int = 10,
    require_end: bool = True,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    seed: int = 0,
    resamples: int = 2000,
    progress: Progress | None = None,
) -> Attack:
    """Trains on a part of what was forgotten, and scores the rest (arXiv 2410.08827).

    The part is drawn by subject (see :func:`weightsurgery.learning.subjects.part_of`), so that no
    example that is trained on shares its subject with a held-out one. The model is scored in
    float32 before and after. One model is held at a time.

    Args:
        checkpoint: Directory or `org/name[@revision]` of a causal language model.
        forget: Data sets that should be forgotten.
        keep: Data sets that should stay, scored too.
        against: A control that gets the same attack on the same part: a model that never knew, or
            the one before the edit.
        steps: See :func:`weightsurgery.learning.attacks.relearn`.
        learning_rate: Likewise.
        batch_size: Likewise.
        fraction: Of the subjects to forget, that the attacker has.
        train: What the attacker has instead: data sets, of which nothing is scored and which may
            speak of anything; all of `forget` is held out.
        looks: Numbers of steps after which it is scored too: the curve of what comes back.
        score_batch: Examples per forward pass of scoring; by default as many as per step.
        reference: For forget quality of what is held out, in every state: a model that never saw
            it, or what was said of one; see :func:`weightsurgery.scoring.yardstick.tofu`.
        metrics: Words for `scores.choose`.
        n: Length of the n-grams of `el`.
        require_end: An exact match must also stop after the completion.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        device_map: Spread the models instead; see `load_model`.
        seed: Of the split, of the order of training, and of the bootstrap.
        resamples: Of the bootstrap.
        progress: Called after every batch and step.

    Raises:
        DataError: A set cannot be read, scored or split, or an option is out of range.
        EditError: A setting of the training or a look is out of range, or there is nothing to
            forget.
        SourceError: A checkpoint cannot be found or loaded.
        NonFiniteError: A model's predictions are NaN, before or after.
        SelectionError: No such metric.
    """
    check_relearning(steps, learning_rate, batch_size)
    looked = _looks(looks, steps)
    together = batch_size if score_batch is None else score_batch
    refuse_distributed("ws attack relearn", "Run it without torchrun, in one process.")
    whole_sets = _checked(
        checkpoint, forget, keep, against, reference, metrics, n, together, resamples
    )
    sets, attackers, trained_on = _dealt(whole_sets, len(forget), train, fraction, seed)
    scores = _scores(sets, reference, metrics, n, require_end, together, device, progress)

    def attacked(name: str) -> States:
        model, tokenizer = load_model(sets.directories[name], device, device_map)
        refuse_offloaded(model, "ws attack relearn")
        model.float()  # type: ignore[no-untyped-call]
        states = {"before": scores.measured(model, tokenizer, name, "before")}

        def measure(state: str) -> None:
            try:
                states[state] = scores.measured(model, tokenizer, name, state)
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"{name}: after relearning, {error.what}", "Lower the learning rate."
                ) from error

        def look(step: int) -> None:
            if step in looked:
                measure(looked[step])

        relearn(
            model, tokenizer, attackers[name], steps, learning_rate, batch_size, seed, progress,
            look if looked else None,
        )  # fmt: skip
        measure("relearned")
        return states

    settings: dict[str, Any] = {
        "steps": steps, "learning_rate": learning_rate, "batch_size": batch_size,
    }  # fmt: skip
    settings |= {"train": [str(path) for path in train]} if train else {"fraction": fraction}
    settings |= {"looks": list(looked)} if looked else {}
    measured = {name: attacked(name) for name in sets.directories}
    attacks = (*looked.values(), "relearned")
    return Attack(
        "relearn", str(checkpoint), _text(against), settings,
        attacks, attacked_sets(sets, measured, attacks, Resampling(seed, resamples)), trained_on,
        0, n, require_end, seed, resamples, _text(reference), scores.qualities or None,
    )  # fmt: skip


def attack_quantize(
    checkpoint: str | Path,
    forget: Sequence[str | Path],
    keep: Sequence[str | Path] = (),
    against: str | Path | None = None,
    *,
    methods: Sequence[str] = ("nf4",),
    reference: str | Path | None = None,
    metrics: Sequence[str] = DEFAULT,
    n: int = 10,
    require_end: bool = True,
    batch_size: int = 32,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    seed: int = 0,
    resamples: int = 2000,
    progress: Progress | None = None,
) -> Attack:
    """Rounds the weights of the linear layers, and scores again (arXiv 2410.16454).

    Args:
        checkpoint: Directory or `org/name[@revision]` of a causal language model.
        forget: Data sets that should be forgotten.
        keep: Data sets that should stay, scored too.
        against: A control that is rounded too: a model that never knew, or the one before the
            edit, which shows what rounding alone costs.
        methods: Out of :data:`weightsurgery.learning.attacks.ROUNDINGS`.
        reference: See :func:`attack_relearn`.
        metrics: Words for `scores.choose`.
        n: Length of the n-grams of `el`.
        require_end: An exact match must also stop after the completion.
        batch_size: Examples per forward pass.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        device_map: Spread the models instead; see `load_model`.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        progress: Called after every batch.

    Raises:
        DataError: A set cannot be read or scored, or an option is out of range.
        EditError: No such method, no linear layers, or there is nothing to forget.
        SourceError: A checkpoint cannot be found or loaded.
        NonFiniteError: A weight or a prediction is NaN.
        SelectionError: No such metric.
        WeightSurgeryError: A library that a method needs is not installed.
    """
    chosen = tuple(dict.fromkeys(methods))
    for method in chosen:
        check_rounding(method)
    if not chosen:
        raise EditError("no way to quantise", f"Choose from {', '.join(ROUNDINGS)}.")
    sets = _checked(checkpoint, forget, keep, against, reference, metrics, n, batch_size, resamples)
    scores = _scores(sets, reference, metrics, n, require_end, batch_size, device, progress)
    layers: list[int] = []

    def attacked(name: str) -> States:
        model, tokenizer = load_model(sets.directories[name], device, device_map)
        states = {"before": scores.measured(model, tokenizer, name, "before")}
        for method in chosen:
            with quantised(model, method) as rounded:
                layers.append(len(rounded))
                states[method] = scores.measured(model, tokenizer, name, method)
        return states

    measured = {name: attacked(name) for name in sets.directories}
    return Attack(
        "quantize", str(checkpoint), _text(against),
        {"methods": list(chosen)}, chosen,
        attacked_sets(sets, measured, chosen, Resampling(seed, resamples)),
        {}, layers[0], n, require_end, seed, resamples, _text(reference), scores.qualities or None,
    )  # fmt: skip


def _checked(
    checkpoint: str | Path,
    forget: Sequence[str | Path],
    keep: Sequence[str | Path],
    against: str | Path | None,
    reference: str | Path | None,
    metrics: Sequence[str],
    n: int,
    batch_size: int,
    resamples: int,
) -> ScoredSets:
    """Reads the sets, and refuses what can be refused before a model is loaded."""
    choose(metrics)
    check_options(forget, keep, None, n, batch_size, resamples)
    if not forget:
        raise EditError("an attack on nothing", "Name what should be forgotten with --forget.")
    models = {"checkpoint": resolve_source(checkpoint).path}
    if against is not None:
        models["control"] = resolve_source(against).path
    sets = ScoredSets.read(models, forget, keep)
    if reference is not None:
        asked(sets, "checkpoint")
    return sets


def _looks(looks: Sequence[int], steps: int) -> dict[int, str]:
    """Names of the states before the last, by number of steps, rising.

    Raises:
        EditError: One is none of the training's.
    """
    for look in looks:
        if not 1 <= look <= steps:
            raise EditError(
                f"a look after step {look} of {steps}", "Look after 1 to as many as are trained."
            )
    return {step: f"step {step}" for step in sorted({*looks} - {steps})}


def _dealt(
    sets: ScoredSets, forget: int, train: Sequence[str | Path], fraction: float, seed: int
) -> tuple[ScoredSets, dict[str, list[Example]], dict[str, list[int]]]:
    """What is scored, what each model is attacked with, and the numbers of these rows by set.

    Raises:
        DataError: A set cannot be read or split.
    """
    attackers: dict[str, list[Example]] = {}
    numbers: dict[str, list[int]] = {}
    if train:
        for name, directory in sets.directories.items():
            tokenizer = load_tokenizer(directory)
            read = [read_examples(path, tokenizer) for path in train]
            attackers[name] = [row for rows in read for row in rows]
            numbers = {
                label: list(range(1, len(rows) + 1))
                for label, rows in zip(set_names(train), read, strict=True)
            }
        return sets, attackers, numbers
    drawn = part_of(sets.sets[:forget], fraction, seed, special_texts(sets.tokenizer))
    attackers = {
        name: [
            rows[number]
            for rows, picked in zip(examples[:forget], drawn, strict=True)
            for number in picked
        ]
        for name, examples in sets.examples.items()
    }
    numbers = {sets.parts[n].name: [row + 1 for row in rows] for n, rows in enumerate(drawn)}
    return sets.divided(drawn), attackers, numbers


def _scores(
    sets: ScoredSets,
    reference: str | Path | None,
    metrics: Sequence[str],
    n: int,
    require_end: bool,
    batch_size: int,
    device: str,
    progress: Progress | None,
) -> AttackScores:
    """What every state is scored by; a reference answers here, before a model is attacked."""
    yardstick = None
    if reference is not None:
        yardstick = Yardstick.read(reference, sets, batch_size, device, progress)
    score_rows = partial(
        score, names=choose(metrics), n=n, batch_size=batch_size, require_end=require_end,
        progress=progress,
    )  # fmt: skip
    return AttackScores(sets, score_rows, yardstick)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
