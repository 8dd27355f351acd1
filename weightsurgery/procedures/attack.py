"""Does it stay forgotten? Scores of a checkpoint before and after an attack, beside a control.

Nothing is written: the attacked weights live in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from weightsurgery.learning.evaluate import check_options
from weightsurgery.learning.intervals import Measurements, Resampling
from weightsurgery.learning.models import DeviceMap, load_model, refuse_offloaded
from weightsurgery.learning.placement import refuse_distributed
from weightsurgery.learning.scores import DEFAULT, choose, score
from weightsurgery.learning.strangers import special_texts
from weightsurgery.learning.subjects import part_of
from weightsurgery.procedures.attacked import Attack, States, attacked_sets
from weightsurgery.procedures.attacked_sets import ScoredSets
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
        batch_size: Likewise; of scoring too.
        fraction: Of the subjects to forget, that the attacker has.
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
        EditError: A setting of the training is out of range, or there is nothing to forget.
        SourceError: A checkpoint cannot be found or loaded.
        NonFiniteError: A model's predictions are NaN, before or after.
        SelectionError: No such metric.
    """
    check_relearning(steps, learning_rate, batch_size)
    refuse_distributed("ws attack relearn", "Run it without torchrun, in one process.")
    whole_sets = _checked(checkpoint, forget, keep, against, metrics, n, batch_size, resamples)
    special = special_texts(whole_sets.tokenizer)
    trained_on = part_of(whole_sets.sets[: len(forget)], fraction, seed, special)
    sets = whole_sets.divided(trained_on)
    score_rows = partial(
        score, names=choose(metrics), n=n, batch_size=batch_size, require_end=require_end,
        progress=progress,
    )  # fmt: skip

    def attacked(name: str) -> States:
        model, tokenizer = load_model(sets.directories[name], device, device_map)
        refuse_offloaded(model, "ws attack relearn")
        model.float()  # type: ignore[no-untyped-call]
        before = _measured(score_rows, model, tokenizer, sets, name)
        pairs = zip(sets.examples[name][: len(trained_on)], trained_on, strict=True)
        examples = [rows[number] for rows, numbers in pairs for number in numbers]
        relearn(model, tokenizer, examples, steps, learning_rate, batch_size, seed, progress)
        try:
            after = _measured(score_rows, model, tokenizer, sets, name)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{name}: after relearning, {error.what}", "Lower the learning rate."
            ) from error
        return {"before": before, "relearned": after}

    settings = {
        "steps": steps, "learning_rate": learning_rate, "batch_size": batch_size,
        "fraction": fraction,
    }  # fmt: skip
    measured = {name: attacked(name) for name in sets.directories}
    resampling = Resampling(seed, resamples)
    return Attack(
        "relearn", str(checkpoint), None if against is None else str(against), settings,
        ("relearned",), attacked_sets(sets, measured, ("relearned",), resampling),
        {whole_sets.parts[n].name: [row + 1 for row in rows] for n, rows in enumerate(trained_on)},
        0, n, require_end, seed, resamples,
    )  # fmt: skip


def attack_quantize(
    checkpoint: str | Path,
    forget: Sequence[str | Path],
    keep: Sequence[str | Path] = (),
    against: str | Path | None = None,
    *,
    methods: Sequence[str] = ("nf4",),
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
    sets = _checked(checkpoint, forget, keep, against, metrics, n, batch_size, resamples)
    score_rows = partial(
        score, names=choose(metrics), n=n, batch_size=batch_size, require_end=require_end,
        progress=progress,
    )  # fmt: skip
    layers: list[int] = []

    def attacked(name: str) -> States:
        model, tokenizer = load_model(sets.directories[name], device, device_map)
        states = {"before": _measured(score_rows, model, tokenizer, sets, name)}
        for method in chosen:
            with quantised(model, method) as rounded:
                layers.append(len(rounded))
                states[method] = _measured(score_rows, model, tokenizer, sets, name)
        return states

    measured = {name: attacked(name) for name in sets.directories}
    return Attack(
        "quantize", str(checkpoint), None if against is None else str(against),
        {"methods": list(chosen)}, chosen,
        attacked_sets(sets, measured, chosen, Resampling(seed, resamples)),
        {}, layers[0], n, require_end, seed, resamples,
    )  # fmt: skip


def _checked(
    checkpoint: str | Path,
    forget: Sequence[str | Path],
    keep: Sequence[str | Path],
    against: str | Path | None,
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
    return ScoredSets.read(models, forget, keep)


def _measured(
    score_rows: Callable[..., dict[str, Measurements]],
    model: Any,
    tokenizer: Any,
    sets: ScoredSets,
    name: str,
) -> list[dict[str, Measurements]]:
    return [
        score_rows(model, tokenizer, rows, where=part.label, forget=part.role == "forget")
        for part, rows in sets.parts_of(name)
    ]
