"""Rounds: identify, discriminate and remove, again and again, on a model in memory.

Each round gathers the activation statistics of what to keep on the model as it is by then, finds
a change of the selected matrices that these inputs hardly feel, and applies it. The sum of the
rounds is one task vector. Three objectives say what a change is after:

``strangers``
    Answer the prompts to forget as one answers strangers (:mod:`weightsurgery.learning.strangers`),
    trained inside the subspace (:mod:`weightsurgery.learning.constrained`). The default.
``negate``
    UNLEARN's three steps (Lizzo & Heck, arXiv 2408.04140; a reconstruction): train a
    few steps on the data itself, discriminate that vector, take it away ``round_scale`` times.
``learn``
    LEARN: give the completions of the data, trained inside the subspace.

What must not change is in :mod:`weightsurgery.learning.keep_span`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import DataError, EditError, MismatchError, SelectionError
from weightsurgery.learning.activations import linear_inputs
from weightsurgery.learning.constrained import Confinement, train_confined
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.identify import ALL_LINEAR
from weightsurgery.learning.keep_span import Kept, confinements, keep_texts, words_for
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.placement import share_of
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import encode_rows
from weightsurgery.learning.strangers import answered, halves
from weightsurgery.learning.training import EncodedRows, Trained, isolated, train_stage
from weightsurgery.learning.values import change_since, held_values, require_float32, restored
from weightsurgery.learning.watch import Watch
from weightsurgery.progress import Progress
from weightsurgery.suggestions import one_of

__all__ = ["OBJECTIVES", "Rounds", "RoundsResult", "find_change"]

OBJECTIVES = ("strangers", "negate", "learn")

# AdamW's usual step for the objective that trains freely; a step relative to the weights' size
# for those that train inside the subspace.
_FREE_RATE, _CONFINED_RATE = 5e-4, 0.4


@dataclass(frozen=True)
class Rounds:
    """Settings of the rounds.

    Attributes:
        objective: One of :data:`OBJECTIVES`.
        rounds: How many.
        steps: Training steps of each.
        batch_size: Examples per step.
        learning_rate: Relative to the root mean square of a weight's entries (see
            :class:`~weightsurgery.learning.constrained.SubspaceAdam`); for ``negate``, AdamW's.
            None for 0.4 and 5e-4.
        epsilon: Ridge of the activation statistics.
        round_scale: λ of each round's vector; for ``negate`` alone.
        draws: Strangers' prompts answered for each example.
        prompts: Strangers' prompts in the statistics; 0 for the keep examples alone.
        seed: Of every draw.

    Raises:
        EditError: A value that makes no sense.
    """

    objective: str = "strangers"
    rounds: int = 1
    steps: int = 80
    batch_size: int = 64
    learning_rate: float | None = None
    epsilon: float = 1e-3
    round_scale: float = 32.0
    draws: int = 2
    prompts: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise EditError(f"objective {self.objective!r}", one_of(self.objective, OBJECTIVES))
        for name in ("rounds", "steps", "batch_size", "draws"):
            if getattr(self, name) < 1:
                raise EditError(
                    f"{name.replace('_', ' ')} {getattr(self, name)}",
                    "Give a whole number from 1.",
                )
        for name in ("prompts", "seed"):
            if getattr(self, name) < 0:
                raise EditError(f"{name} {getattr(self, name)}", "Give a whole number from 0.")
        for name in ("learning_rate", "epsilon", "round_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise EditError(f"{name.replace('_', ' ')} {value}", "Give a number above 0.")

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _FREE_RATE if self.objective == "negate" else _CONFINED_RATE


@dataclass(frozen=True)
class RoundsResult:
    """The change that the rounds found, and how they went.

    Attributes:
        change: By parameter the sum of all rounds, ``W' − W``, float32 on the CPU.
        losses: First and last loss of each round.
        watched: Scores of the watch at each look; see :class:`Watch`.
    """

    change: dict[str, Tensor]
    losses: list[tuple[float, float]]
    watched: list[dict[str, float]]


def find_change(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    kept: Kept,
    settings: Rounds,
    *,
    selection: Selection = ALL_LINEAR,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> RoundsResult:
    """Finds the change in rounds; the model is as before in the end, to the bit.

    Args:
        model: Float32, on the device to work on.
        tokenizer: Its tokenizer.
        examples: What to forget, or to learn.
        kept: What the change must not touch.
        settings: Of the rounds.
        selection: Which matrices, by their names in memory.
        watch: Ends the rounds early, by validation data.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        The change, its losses and scores.

    Raises:
        EditError: Weights that are not float32, or a watch that would never look.
        DataError: No examples, or ones that the model cannot take.
        MismatchError: A selected matrix is no linear layer, so it has no activations.
        SelectionError: No matrix is selected.
        NonFiniteError: A loss or weight is NaN or infinite.
    """
    if not examples:
        raise DataError("no examples to forget or learn", "Give at least one.")
    if watch is not None and watch.every > settings.rounds * settings.steps:
        raise EditError(
            f"looks every {watch.every} steps, in training of {settings.rounds * settings.steps}",
            "Look more often, or take more steps.",
        )
    names = _matrices(model, selection)
    losses: list[tuple[float, float]] = []
    with restored(model, names) as before, isolated(), quiet():
        torch.manual_seed(settings.seed)
        rows = _rows(model, tokenizer, examples, settings, progress)
        texts = keep_texts(tokenizer, examples, kept, settings.prompts, settings.seed)
        if watch is not None:
            watch.begin(model, tokenizer, names)
        for number in range(settings.rounds):
            inside = confinements(model, tokenizer, texts, kept, settings.epsilon, names, progress)
            training = Training(
                steps=settings.steps,
                learning_rate=settings.rate,
                batch_size=share_of(settings.batch_size),
                seed=settings.seed + number,
            )
            taken = number * settings.steps
            if settings.objective == "negate":
                trained = _take_away(model, rows, inside, training, settings.round_scale, progress)
                ended = watch is not None and watch.look(taken + settings.steps)
            else:
                ended, trained = _train(model, rows, inside, training, watch, taken, progress)
            losses.append((trained.first_loss, trained.last_loss))
            if ended:
                break
        if watch is not None:
            watch.finish()
        change = change_since(model, before)
        return RoundsResult(change, losses, [] if watch is None else watch.history)


def _matrices(model: PreTrainedModel, selection: Selection) -> list[str]:
    """The selected matrices; vectors (norms, biases) stay as they are."""
    layers = linear_inputs(model)
    names = []
    selected = list(selection.resolve(entries_of(model)))
    require_float32(model, selected)
    for name in selected:
        if model.get_parameter(name).ndim < 2:
            continue
        if name not in layers:
            raise MismatchError(
                f"tensor {name!r}: not the weight of a linear layer, so nothing says what it is"
                " given",
                f"Leave it out with --exclude '{name}'.",
            )
        names.append(name)
    if not names:
        raise SelectionError(
            "no matrix is selected", "Widen --targets, --include, --exclude or --layers."
        )
    return names


def _rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Rounds,
    progress: Progress | None,
) -> EncodedRows:
    """The rows to train on."""
    wanted = list(examples)
    if settings.objective == "strangers":
        wanted = halves(examples)
        words = words_for(tokenizer, [[example.prompt for example in wanted]])
        wanted = answered(
            model, tokenizer, wanted, words, settings.draws, settings.seed, progress=progress
        )
    return EncodedRows(
        encode_rows(model, tokenizer, wanted, None), Collator(padding_token(tokenizer))
    )


def _train(
    model: PreTrainedModel,
    rows: EncodedRows,
    inside: Mapping[str, Confinement],
    training: Training,
    watch: Watch | None,
    taken: int,
    progress: Progress | None,
) -> tuple[bool, Trained]:
    """A round inside the subspace, after so many steps; whether the watch ended it."""
    ended = False

    def enough(step: int) -> bool:
        nonlocal ended
        ended = watch is not None and watch.look(taken + step)
        return ended

    trained = train_confined(
        model, rows, inside, training, device=model.device, enough=enough, progress=progress
    )
    return ended, trained


def _take_away(
    model: PreTrainedModel,
    rows: EncodedRows,
    inside: Mapping[str, Confinement],
    training: Training,
    scale: float,
    progress: Progress | None,
) -> Trained:
    """A round of identify, discriminate, remove."""
    before = held_values(model, inside)
    stage = Stage("all layers", tuple(inside))
    trained = train_stage(model, stage, rows, training, device=model.device, progress=progress)
    for name, confinement in inside.items():
        weight = model.get_parameter(name)
        held = confinement.to(weight.device)
        with torch.no_grad():
            known = before.pop(name).to(weight.device)
            left = held.left(weight - known)
            weight.copy_(known).sub_(left, alpha=scale)
    return trained
