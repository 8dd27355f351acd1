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
from weightsurgery.learning.activations import linear_inputs
from weightsurgery.learning.constrained import Confinement, confine, train_confined
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.evaluate import exact_match
from weightsurgery.learning.identify import ALL_LINEAR
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.stages import encode_rows, set_values, values_of
from weightsurgery.learning.statistics import Text, gather
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

__all__ = ["OBJECTIVES", "Found", "Kept", "Rounds", "Watch", "find_change", "keep_texts"]

OBJECTIVES = ("strangers", "negate", "learn")

# AdamW's usual step for the objective that trains freely; a step relative to the weights' size
# for those that train inside the subspace.
_FREE_RATE, _CONFINED_RATE = 5e-4, 0.4


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


class Watch:
    """Looks at validation data during training; the best weights so far count in the end.

    The best are those that forget most (or, learning, know most) among those that leave every
    keep set at ``threshold`` of its accuracy before.

    Args:
        target: Examples to forget or learn.
        keep: Validation examples of what to keep, by name; not those in the statistics.
        threshold: Share of a keep set's accuracy that must stay.
        every: Steps between looks; rounds that negate are looked at between them.
        learning: More of the target is better.
        patience: Looks in a row at which a keep set suffers before the training ends. One alone
            says little: training inside the subspace finds back, and a small set loses several
            percent with a single answer.

    Attributes:
        seen: Accuracy of the target (under ``""``) and of each keep set, before any change and
            at each look; of looks also the ``"step"``.
    """

    def __init__(
        self,
        target: Sequence[Example],
        keep: Mapping[str, Sequence[Example]],
        threshold: float = 0.975,
        every: int = 10,
        learning: bool = False,
        patience: int = 3,
    ) -> None:
        self.target, self.keep, self.every, self.learning = target, keep, every, learning
        self.threshold, self.patience = threshold, patience
        self.seen: list[dict[str, float]] = []
        self._before: dict[str, float] = {}
        self._best: tuple[float, dict[str, Tensor]] | None = None

    def begin(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
    ) -> None:
        """Measure the model before any change."""
        self._model, self._tokenizer, self._names = model, tokenizer, list(names)
        self._before = self._scores()
        self._best = (self._before[""], values_of(model, self._names))
        self.seen = [dict(self._before)]
        self._looked = self._suffering = 0

    def look(self, step: int) -> bool:
        """Measure if it is time to; whether to end: a keep set suffers on, or all is reached.

        Args:
            step: Steps taken since :meth:`begin`.
        """
        if step - self._looked < self.every:
            return False
        self._looked = step
        was_training = self._model.training
        scores = self._scores()
        self._model.train(was_training)
        self.seen.append({**scores, "step": float(step)})
        if any(scores[name] < self.threshold * self._before[name] for name in self.keep):
            self._suffering += 1
            return self._suffering >= self.patience
        self._suffering = 0
        assert self._best is not None
        if (scores[""] > self._best[0]) if self.learning else (scores[""] < self._best[0]):
            self._best = (scores[""], values_of(self._model, self._names))
        return scores[""] == float(self.learning)

    def finish(self) -> None:
        """Put the best weights in place; those before any change, where no look saw better."""
        assert self._best is not None
        set_values(self._model, self._best[1])

    def _scores(self) -> dict[str, float]:
        """Exact match of the target, under the empty name, and of each keep set."""
        sets = {"": self.target, **self.keep}
        return {
            name: exact_match(self._model, self._tokenizer, rows) for name, rows in sets.items()
        }


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
    grams = gather(model, tokenizer, texts, names, progress=progress)
    layers = linear_inputs(model)
    found: dict[str, Confinement] = {}
    known: dict[int, Confinement] = {}
    for name in names:
        gram, more, v = grams[name], kept.gram(name), kept.directions.get(name)
        alone = more is None and v is None
        if alone and id(gram) in known:
            found[name] = known[id(gram)]
            continue
        total = gram if more is None else gram + more.to(gram.device, gram.dtype)
        transposed = not isinstance(layers[name][0], nn.Linear)
        inside = confine(total.to(model.device), epsilon, v, transposed).to(torch.device("cpu"))
        found[name] = inside
        if alone:
            known[id(gram)] = inside
    return found


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
