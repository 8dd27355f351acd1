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
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.constrained import Confinement, confine, train_confined
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.evaluate import exact_match
from weightsurgery.learning.identify import ALL_LINEAR, train_vector
from weightsurgery.learning.models import quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.stages import encode_rows, set_values, values_of
from weightsurgery.learning.statistics import Text, gather
from weightsurgery.learning.strangers import (
    Words,
    answered,
    halves,
    slot_words,
    strangers,
    word_salad,
)
from weightsurgery.learning.training import Progress, Rows, Training, isolated

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
        if self.prompts < 0:
            raise EditError(f"prompts {self.prompts}", "Give a whole number from 0.")
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
        every: Steps between looks.
        learning: More of the target is better.
    """

    def __init__(
        self,
        target: Sequence[Example],
        keep: Mapping[str, Sequence[Example]],
        threshold: float = 0.975,
        every: int = 10,
        learning: bool = False,
    ) -> None:
        self.target, self.keep, self.every, self.learning = target, keep, every, learning
        self.threshold = threshold
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

    def look(self, step: int) -> bool:
        """Measure if it is time to; whether to end: a keep set suffers, or all is reached."""
        if step % self.every:
            return False
        self._model.eval()  # type: ignore[no-untyped-call]
        scores = self._scores()
        self._model.train()
        self.seen.append({**scores, "step": float(step)})
        if any(scores[name] < self.threshold * self._before[name] for name in self.keep):
            return True
        assert self._best is not None
        if (scores[""] > self._best[0]) if self.learning else (scores[""] < self._best[0]):
            self._best = (scores[""], values_of(self._model, self._names))
        return scores[""] == float(self.learning)

    def finish(self) -> None:
        """Put the best weights in place."""
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
        watched: What the watch saw: exact match of the target (under ``""``) and of each keep
            set, before and at each look.
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
        examples: What to forget or learn; none of its prompts comes out.
        kept: The keep examples are part of it.
        prompts: Strangers' prompts, in equal parts of the form of ``examples`` and of each keep
            set; where nothing is to be kept, half of them are texts of random words.
        seed: Of the draws.
    """
    asked = [example.prompt for example in halves(examples)]
    own: list[Text] = [example for rows in kept.sets for example in rows]
    if not prompts:
        return own
    sources = [asked, *([example.prompt for example in halves(rows)] for rows in kept.sets)]
    words = _words(tokenizer, sources)
    salad = word_salad(words, prompts // 2, seed) if kept.empty else []
    share = (prompts - len(salad)) // len(sources)
    for number, source in enumerate(sources):
        own += strangers(source, words, share, seed * len(sources) + number, set(asked))
    return [*own, *salad]


def _words(tokenizer: PreTrainedTokenizerBase, sources: Sequence[Sequence[str]]) -> Words:
    """What fills slots: words of the data's own slots, and of the vocabulary."""
    return Words(tokenizer, {word for source in sources for word in slot_words(source)})


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
        EditError: Weights that are not float32.
        DataError: No examples, or ones that the model cannot take.
        MismatchError: A selected matrix is no linear layer, so it has no activations.
        SelectionError: Nothing is selected.
        NonFiniteError: A loss or weight is NaN or infinite.
    """
    names = [name for name in selection.resolve(entries_of(model)) if _is_matrix(model, name)]
    before = values_of(model, names)
    was_training = model.training
    thawed = {name: each.requires_grad for name, each in model.named_parameters()}
    losses: list[tuple[float, float]] = []
    try:
        with isolated(), quiet():
            torch.manual_seed(settings.seed)
            rows = _rows(model, tokenizer, examples, settings, progress)
            if watch is not None:
                watch.begin(model, tokenizer, names)
            for number in range(settings.rounds):
                inside = _confinements(model, tokenizer, examples, kept, settings, names, progress)
                training = Training(
                    steps=settings.steps,
                    learning_rate=settings.rate,
                    batch_size=settings.batch_size,
                    seed=settings.seed + number,
                )
                ended = False
                if settings.objective == "negate":
                    losses.append(_take_away(
                        model, tokenizer, examples, training, settings.scale, inside, selection,
                        progress,
                    ))  # fmt: skip
                    ended = watch is not None and watch.look(watch.every)
                else:
                    ended, trained = _train(model, rows, inside, training, watch, progress)
                    losses.append(trained)
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


def _is_matrix(model: PreTrainedModel, name: str) -> bool:
    parameter = model.get_parameter(name)
    if parameter.dtype != torch.float32:
        raise EditError(
            f"{name!r} is {parameter.dtype}: small steps would be rounded away",
            "Load the model in float32.",
        )
    return parameter.ndim == 2


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
    examples: Sequence[Example],
    kept: Kept,
    settings: Rounds,
    names: Sequence[str],
    progress: Progress | None,
) -> dict[str, Confinement]:
    """Where each matrix may change, by the model as it is now; matrices of one input share."""
    texts = keep_texts(tokenizer, examples, kept, settings.prompts, settings.seed)
    model.eval()  # type: ignore[no-untyped-call]
    grams = gather(model, tokenizer, texts, names, progress=progress)
    found: dict[str, Confinement] = {}
    known: dict[int, Confinement] = {}
    for name in names:
        gram, more, v = grams[name], kept.gram(name), kept.directions.get(name)
        if more is None and v is None and id(gram) in known:
            found[name] = known[id(gram)]
            continue
        total = gram if more is None else gram + more.to(gram.device, gram.dtype)
        m = model.get_parameter(name).shape[0]
        transposed = total.shape[0] == m and not _is_linear(model, name)
        found[name] = confine(total, settings.epsilon, v, transposed)
        if more is None and v is None:
            known[id(gram)] = found[name]
    return found


def _is_linear(model: PreTrainedModel, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.Linear)


def _train(
    model: PreTrainedModel,
    rows: Rows,
    inside: Mapping[str, Confinement],
    training: Training,
    watch: Watch | None,
    progress: Progress | None,
) -> tuple[bool, tuple[float, float]]:
    """A round inside the subspace; whether the watch ended it, and its losses."""
    ended = False

    def enough(step: int) -> bool:
        nonlocal ended
        ended = watch is not None and watch.look(step)
        return ended

    trained = train_confined(
        model, rows, inside, training, device=model.device, enough=enough, progress=progress
    )
    return ended, (trained.first_loss, trained.last_loss)


def _take_away(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    training: Training,
    scale: float,
    inside: Mapping[str, Confinement],
    selection: Selection,
    progress: Progress | None,
) -> tuple[float, float]:
    """A round of identify, discriminate, remove; the losses of identification."""
    seen: list[float] = []

    def tell(text: str, done: int, total: int) -> None:
        seen.append(float(text.rpartition(" ")[2]))
        if progress is not None:
            progress(text, done, total)

    vector = train_vector(model, tokenizer, examples, training, selection=selection, progress=tell)
    for name, confinement in inside.items():
        weight = model.get_parameter(name)
        task = vector[name].to(weight.device)
        task = task.T if confinement.transposed else task
        held = confinement.to(weight.device)
        left = ((task @ held.Q) * held.damping) @ held.Q.T
        with torch.no_grad():
            weight.sub_(left.T if confinement.transposed else left, alpha=scale)
    return seen[0], seen[-1]
