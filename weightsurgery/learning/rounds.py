"""Rounds: identify, discriminate and remove, again and again, on a model in memory.

Each round gathers the activation statistics of what to keep on the model as it is by then, finds
a change of the selected matrices that these inputs hardly feel, and applies it. The sum of the
rounds is one task vector. Three objectives say what a change is after:

``strangers``
    Answer the prompts to forget as one answers strangers (:mod:`weightsurgery.learning.strangers`),
    trained inside the subspace (:mod:`weightsurgery.learning.constrained`). The default.
``negate``
    UNLEARN's three steps (Lizzo & Heck, arXiv 2408.04140; a reconstruction): train a
    few steps on the data itself, discriminate that vector, take it away ``scale`` times.
``learn``
    LEARN: give the completions of the data, trained inside the subspace.

What is kept: the keep examples themselves, and how inputs like theirs, and like those to forget,
look: strangers' prompts of the same forms. Without any keep data, texts of random words stand
for the rest of the world.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import DataError, EditError, MismatchError, SelectionError
from weightsurgery.learning.activations import BATCH_TOKENS, gathered, linear_inputs
from weightsurgery.learning.constrained import Confinement, confine, train_confined
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.identify import ALL_LINEAR
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.stages import encode_rows, set_values, values_of
from weightsurgery.learning.statistics import Text, tokens_of
from weightsurgery.learning.strangers import (
    Words,
    answered,
    halves,
    slot_words,
    special_texts,
    strangers,
    word_salad,
)
from weightsurgery.learning.training import (
    Progress,
    Rows,
    Trained,
    Training,
    isolated,
    train_stage,
)
from weightsurgery.learning.watch import Watch

__all__ = ["OBJECTIVES", "Found", "Kept", "Rounds", "Watch", "find_change", "keep_texts"]

OBJECTIVES = ("strangers", "negate", "learn")

# AdamW's usual step for the objective that trains freely; a step relative to the weights' size
# for those that train inside the subspace.
_FREE_RATE, _CONFINED_RATE = 5e-4, 0.4

# What sums of activation statistics may take at once; larger models run over the texts again.
_SUMS = 4 << 30


@dataclass(frozen=True)
class Rounds:
    """What happens in the rounds.

    Attributes:
        objective: One of :data:`OBJECTIVES`.
        rounds: How many.
        steps: Training steps of each.
        batch_size: Examples per step.
        learning_rate: Relative to the root mean square of a weight's entries (see
            :class:`~weightsurgery.learning.constrained.SubspaceAdam`); for ``negate``, AdamW's.
            None for 0.4 and 5e-4.
        epsilon: Ridge of the activation statistics.
        scale: λ of each round's vector; for ``negate`` alone.
        draws: Strangers asked for each example.
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
    scale: float = 32.0
    draws: int = 2
    prompts: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise EditError(
                f"objective {self.objective!r}", f"Choose one of: {', '.join(OBJECTIVES)}."
            )
        for name in ("rounds", "steps", "batch_size", "draws"):
            if getattr(self, name) < 1:
                raise EditError(
                    f"{name.replace('_', ' ')} {getattr(self, name)}",
                    "Give a whole number from 1.",
                )
        for name in ("prompts", "seed"):
            if getattr(self, name) < 0:
                raise EditError(f"{name} {getattr(self, name)}", "Give a whole number from 0.")
        for name in ("learning_rate", "epsilon", "scale"):
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
class Kept:
    """What the change must not touch.

    Attributes:
        sets: Keep examples, by data set.
        directions: Input directions of keep vectors, by parameter: ``V``, ``(n, q)``,
            orthonormal.
        gram: Further activation statistics, by parameter: ``C``, ``(n, n)``, or None.
    """

    sets: Sequence[Sequence[Example]] = ()
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    gram: Callable[[str], Tensor | None] = lambda name: None

    @property
    def empty(self) -> bool:
        """Whether there is neither data nor a vector."""
        return not self.sets and not self.directions


@dataclass(frozen=True)
class Found:
    """What the rounds found.

    Attributes:
        change: By parameter the sum of all rounds, ``W' − W``, float32 on the CPU.
        losses: First and last loss of each round.
        watched: What the watch saw; see :class:`Watch`.
    """

    change: dict[str, Tensor]
    losses: list[tuple[float, float]]
    watched: list[dict[str, float]]


def keep_texts(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    kept: Kept,
    prompts: int,
    seed: int = 0,
) -> list[Text]:
    """Everything whose activations say what to keep.

    Args:
        tokenizer: Its vocabulary fills the slots.
        examples: What to forget or learn; none of its prompts comes out. May be empty.
        kept: The keep examples are part of it.
        prompts: Strangers' prompts, in equal parts of the form of ``examples`` and of each keep
            set; where nothing is to be kept, half of them are texts of random words.
        seed: Of the draws.

    Raises:
        DataError: Strangers are to be made up, and there are no words to do so.
    """
    own: list[Text] = [example for rows in kept.sets for example in rows]
    if not prompts:
        return own
    sources = [halves(rows) for rows in (examples, *kept.sets)]
    asked = [[example.prompt for example in rows] for rows in sources]
    words = _words(tokenizer, asked)
    salad = word_salad(words, prompts // 2, seed) if kept.empty else []
    share = (prompts - len(salad)) // len(sources)
    for number, (rows, source) in enumerate(zip(sources, asked, strict=True)):
        made = strangers(source, words, share, seed * len(sources) + number, set(asked[0]))
        if rows and rows[0].templated:  # the template has written the special tokens
            own += [tokenizer(text, add_special_tokens=False)["input_ids"] for text in made]
        else:
            own += made
    return [*own, *salad]


def _words(tokenizer: PreTrainedTokenizerBase, sources: Sequence[Sequence[str]]) -> Words:
    """What fills slots: words of the data's own slots, and of the vocabulary."""
    special = special_texts(tokenizer)
    return Words(tokenizer, {word for source in sources for word in slot_words(source, special)})


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
) -> Found:
    """Finds the change in rounds; the model is as before in the end, to the bit.

    Args:
        model: Float32, on the device to work on.
        tokenizer: Its tokenizer.
        examples: What to forget, or to learn.
        kept: What the change must not touch.
        settings: What happens in the rounds.
        selection: Which matrices, by their names in memory.
        watch: Ends the rounds early, by validation data.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        The change and how it came about.

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
    before = values_of(model, names)
    was_training = model.training
    thawed = {name: each.requires_grad for name, each in model.named_parameters()}
    losses: list[tuple[float, float]] = []
    try:
        with isolated(), quiet():
            torch.manual_seed(settings.seed)
            rows = _rows(model, tokenizer, examples, settings, progress)
            texts = keep_texts(tokenizer, examples, kept, settings.prompts, settings.seed)
            if watch is not None:
                watch.begin(model, tokenizer, names)
            for number in range(settings.rounds):
                inside = _confinements(
                    model, tokenizer, texts, kept, settings.epsilon, names, progress
                )
                training = Training(
                    steps=settings.steps,
                    learning_rate=settings.rate,
                    batch_size=settings.batch_size,
                    seed=settings.seed + number,
                )
                taken = number * settings.steps
                if settings.objective == "negate":
                    trained = _take_away(model, rows, inside, training, settings.scale, progress)
                    ended = watch is not None and watch.look(taken + settings.steps)
                else:
                    ended, trained = _train(model, rows, inside, training, watch, taken, progress)
                losses.append((trained.first_loss, trained.last_loss))
                if ended:
                    break
            if watch is not None:
                watch.finish()
        after = values_of(model, names)
        change = {name: after[name].sub_(before[name]) for name in names}
        return Found(change, losses, [] if watch is None else watch.seen)
    finally:
        set_values(model, before)
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(thawed[name])


def _matrices(model: PreTrainedModel, selection: Selection) -> list[str]:
    """The selected matrices; vectors (norms, biases) stay as they are."""
    layers = linear_inputs(model)
    names = []
    for name in selection.resolve(entries_of(model)):
        parameter = model.get_parameter(name)
        if parameter.dtype != torch.float32:
            raise EditError(
                f"{name!r} is {parameter.dtype}: small steps would be rounded away",
                "Load the model in float32.",
            )
        if parameter.ndim < 2:
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
) -> Rows:
    """What to train on."""
    wanted = list(examples)
    if settings.objective == "strangers":
        wanted = halves(examples)
        words = _words(tokenizer, [[example.prompt for example in wanted]])
        wanted = answered(
            model, tokenizer, wanted, words, settings.draws, settings.seed, progress=progress
        )
    return Rows(encode_rows(model, tokenizer, wanted, None), Collator(padding_token(tokenizer)))


def _confinements(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    kept: Kept,
    epsilon: float,
    names: Sequence[str],
    progress: Progress | None,
) -> dict[str, Confinement]:
    """Where each matrix may change, by the model as it is now; matrices of one input share.

    They are decomposed on the model's device and held on the CPU.
    """
    layers = linear_inputs(model)
    chosen = {name: layers[name] for name in names}
    rows = tokens_of(tokenizer, texts, model)
    found: dict[str, Confinement] = {}
    # Decomposed as they come: no more than one run's sums are held.
    for together, gram, _ in gathered(model, chosen, rows, _SUMS, BATCH_TOKENS, progress):
        shared: Confinement | None = None
        for name in together:
            more, v = kept.gram(name), kept.directions.get(name)
            alone = more is None and v is None
            if not alone or shared is None:
                total = gram if more is None else gram + more.to(gram.device, gram.dtype)
                transposed = not isinstance(layers[name][0], nn.Linear)
                inside = confine(total, epsilon, v, transposed).to(torch.device("cpu"))
                shared = inside if alone else shared
            found[name] = inside if not alone or shared is None else shared
    for name in names:
        if name not in found:
            raise MismatchError(
                f"tensor {name!r}: the model does not run it on these examples",
                f"Leave it out with --exclude '{name}'.",
            )
    return {name: found[name] for name in names}


def _train(
    model: PreTrainedModel,
    rows: Rows,
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
    rows: Rows,
    inside: Mapping[str, Confinement],
    training: Training,
    scale: float,
    progress: Progress | None,
) -> Trained:
    """A round of identify, discriminate, remove."""
    before = values_of(model, inside)
    stage = Stage("all layers", tuple(inside))
    trained = train_stage(model, stage, rows, training, device=model.device, progress=progress)
    for name, confinement in inside.items():
        weight = model.get_parameter(name)
        held = confinement.to(weight.device)
        with torch.no_grad():
            known = before.pop(name).to(weight.device)
            task = weight - known
            task = task.T if held.transposed else task
            left = ((task @ held.Q) * held.damping) @ held.Q.T
            weight.copy_(known).sub_(left.T if held.transposed else left, alpha=scale)
    return trained
