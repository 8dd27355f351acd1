"""Training by neighbours: towards a model that never knew the request, unchanged elsewhere.

A low-rank change of all linear layers (LoRA, Hu et al., arXiv 2106.09685) is trained on

    ``L = KL(u ‖ f) + KL₂(f ‖ u)  +  w_k · KL(f₀ ‖ f) on what is to stay  +  w_l · KL(f₀ ‖ f) on
    language``,

where ``u`` are the predictions of a model that never knew (:mod:`weightsurgery.learning.unknown`),
at the places where the truth would come, and ``f₀`` the model as it was. ``KL₂`` is of one event,
that the truth comes; it is left out where ``u`` are answers to be learned. Places where the last
look found more to do have more weight. What is to stay are its answers about neighbours
(:mod:`weightsurgery.learning.neighbours`), the keep data, what else it writes about the subjects,
and the places before the truth; language is text that it wrote itself. Predictions of ``f₀`` are
looked up (:mod:`weightsurgery.learning.expected`), not computed again.

The number of steps follows from the looks (:mod:`weightsurgery.learning.cycles`). Of these, the
best inside a budget of divergence on text that is not trained on counts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from weightsurgery.errors import EditError
from weightsurgery.learning.cycles import Cycles
from weightsurgery.learning.data import Collator, Encoded
from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import divergences, truth_divergences
from weightsurgery.learning.last_places import together
from weightsurgery.learning.looks import Look, Looks, logits_of
from weightsurgery.learning.material import KEPT, Material, Row
from weightsurgery.learning.method import Stage
from weightsurgery.learning.settings import Training
from weightsurgery.learning.trainer import StageTrainer
from weightsurgery.learning.training import EncodedRows, Trained, train_stage
from weightsurgery.progress import Progress

_STEPS, _READ = 40, 4  # steps of a cycle at least; how often it reads every place

_AS_ASKED = 0.5  # how often a fact is read in the words of the request, rather than in any

# Short answers that a long one counts as.
_LONG = 4

# Weight of a place where a look found more to do, relative to another one.
_URGE = 4

# Kinds of texts whose first place is that of an answer, and how many places a short one has.
_ANSWERS, _SHORT = ("neighbours", "keep"), 16

__all__ = ["LEARNING", "WHOLE", "Forgetting", "train_forgetting"]


@dataclass(frozen=True)
class Forgetting:
    """Settings of the training.

    Attributes:
        steps: Optimiser steps; None for cycles, the first of 40, or of as many as read every place
            to forget four times, and of twice that to learn.
        cycles: At most, where ``steps`` are not given.
        learning_rate: Of AdamW, after a rise over four steps and before a fall to nothing.
        batch_size: Texts to forget or learn per step; as many about neighbours, half of that of the
            keep data, and a quarter, in turn, of the subjects and of ordinary language.
        keep_weight: ``w_k``.
        language_weight: ``w_l``.
        every: Steps between looks, and between points from which a killed run goes on; more of
            them where there are many steps and none were named.
        budget: Divergence on text that is not trained on, nats a token, that a change may cost.
        seed: Of every draw.

    Raises:
        EditError: A value that makes no sense.
    """

    steps: int | None = None
    cycles: int = 4
    learning_rate: float = 1.5e-3
    batch_size: int = 12
    keep_weight: float = 60.0
    language_weight: float = 6.0
    every: int = 20
    budget: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "cycles", "batch_size", "every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise EditError(
                    f"{name.replace('_', ' ')} {getattr(self, name)}", "Give a whole number from 1."
                )
        for name in ("learning_rate", "budget"):
            if not 0 < getattr(self, name) < float("inf"):
                raise EditError(
                    f"{name.replace('_', ' ')} {getattr(self, name)}", "Give a number above 0."
                )
        for name in ("keep_weight", "language_weight", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise EditError(
                    f"{name.replace('_', ' ')} {getattr(self, name)}", "Give a number from 0."
                )

    def for_places(self, count: int, learning: bool = False) -> Forgetting:
        """The same with as many steps a cycle as so many places take, or twice that to learn."""
        if self.steps is not None:
            return replace(self, cycles=1)
        steps = (1 + learning) * max(_STEPS, -(-_READ * count // self.batch_size))
        return replace(self, steps=steps, every=max(self.every, steps // 6))


LEARNING = Forgetting(cycles=3, learning_rate=2e-3, keep_weight=10.0, language_weight=3.0)
"""Settings for data that is to be learned, which takes more than to forget."""

WHOLE = Forgetting(keep_weight=100.0, language_weight=40.0)
"""Settings for answers that are to be forgotten whole: much is taught at each step."""


class _ByNeighbours(StageTrainer):
    """A step is a batch of texts to forget and of each kind that is to stay."""

    material: Material
    settings: Forgetting
    padding: int
    looks: Looks
    cycles: Cycles
    numbers: dict[int, int]

    def create_scheduler(self, num_training_steps, optimizer=None):  # type: ignore[no-untyped-def]
        """See Trainer; the rate follows from the looks, so that a run that goes on has it too."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: self.cycles.rate(self.looks.history, step),
        )
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):  # type: ignore[no-untyped-def]
        """See Trainer; the step's number decides what is drawn, so that a run can go on."""
        next(epoch_iterator, None)
        return [{"step": torch.tensor(self.state.global_step)}], None

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer; rows of like lengths together, each part with its own backward pass."""
        total: Any = 0
        for part in self._parts(model, int(inputs["step"])):
            total += super().training_step(model, {"part": part})
        return total

    @override
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        rows, weights = inputs["part"]
        logits, expected = logits_of(model, rows, self.padding)
        loss = (divergences(expected, logits) * torch.cat(weights).to(logits.device)).sum()
        firsts = self._firsts(rows, weights)
        if firsts:
            weight = torch.tensor([each for _, each, _ in firsts], device=logits.device)
            truths = [event.tokens for _, _, event in firsts]
            wanted = [event.wanted for _, _, event in firsts]
            selected = logits[[place for place, _, _ in firsts]]
            loss = loss + (weight * truth_divergences(selected, truths, wanted)).sum()
        return loss

    def _firsts(
        self, rows: Sequence[Row], weights: Sequence[Tensor]
    ) -> list[tuple[int, float, Event]]:
        """Where, among the places of all rows, a truth to forget would come.

        Returns:
            The place, its weight, and what would come.
        """
        firsts, start = [], 0
        for row, weight in zip(rows, weights, strict=True):
            number = self.numbers.get(id(row))
            if number is not None and not self.material.learning:
                events = self.material.events[number]
                each = float(weight[row.held :].sum() if len(events) == 1 else weight[-1])
                firsts += [(start + row.held + event.at, each, event) for event in events]
            start += len(row.expected)
        return firsts

    def _prepare_inputs(self, inputs):  # type: ignore[no-untyped-def]
        """See Trainer; what is drawn is put on the device where it is used."""
        return inputs

    def _shared_by(self, row: Row, number: int | None) -> float:
        """Among how many places of an answer its weight is shared; a long one has more of it."""
        events = [] if number is None else self.material.events[number]
        if len(events) < 2:
            return len(row.expected) - row.held
        return max(1, len(events) / _LONG)

    def _to_forget(self, step: int, rng: random.Random) -> list[Row]:
        """Half of those that the last look found not yet forgotten; the rest, fact after fact.

        A fact that is not read for some steps comes back. Half of the time it is read in the
        words of the request, at its first place.
        """
        taught, size = self.material.taught, self.settings.batch_size
        left = self._last_look(step).left
        chosen = rng.sample(left, min(len(left), size // 2))
        facts: dict[int, list[int]] = {}
        for number, row in enumerate(taught):
            facts.setdefault(row.number, []).append(number)
        order = list(facts)
        random.Random(f"facts {self.settings.seed}").shuffle(order)
        for turn in range(len(taught)):
            if len(chosen) == min(size, len(taught)):
                break
            candidates = facts[order[(step * max(1, size // 2) + turn) % len(order)]]
            others = [number for number in candidates if number not in chosen]
            if candidates[0] in others and rng.random() < _AS_ASKED:
                others = candidates[:1]
            chosen += rng.sample(others, min(1, len(others)))
        return [taught[number] for number in chosen]

    def _last_look(self, step: int) -> Look:
        """The last look, also in a run that goes on from before it."""
        return [each for each in self.looks.history if each.step <= step][-1]

    def _parts(self, model: Any, step: int) -> list[tuple[list[Row], list[Tensor]]]:
        settings = self.settings
        rng = random.Random(f"step {settings.seed} {step}")
        quarter = max(1, settings.batch_size // 4)
        sizes = dict.fromkeys(KEPT, quarter)
        sizes |= {"neighbours": settings.batch_size, "keep": settings.batch_size // 2}
        # Texts are long, and easily held: each kind of them at every second step.
        sizes["subjects" if step % 2 == 0 else "language"] = 0
        drawn = [("forget", row) for row in self._to_forget(step, rng)]
        for kind in KEPT:
            # Of neighbours, half are of those that moved most.
            moved = self._last_look(step).moved if kind == "neighbours" else ()
            rows = _half_of(self.material.kept[kind], moved, sizes[kind], rng)
            drawn += [(kind, row) for row in rows]
        places: dict[str, int] = {}
        for kind, row in drawn:
            places[kind] = places.get(kind, 0) + row.held
        looked = self._last_look(step)
        left = set(looked.left) if looked.step else set()
        count = sum(kind == "forget" for kind, _ in drawn)
        weighed = []
        for kind, row in drawn:
            factor = settings.language_weight if kind == "language" else settings.keep_weight
            weight = torch.full((len(row.expected),), factor / max(1, places[kind]))
            if kind in _ANSWERS and 1 < row.held <= _SHORT:
                # Half of it where the answer begins: what follows from that is easily held.
                weight /= 2 * (row.held - 1) / row.held
                weight[0] *= row.held - 1
            taught = len(row.expected) - row.held
            if taught:
                number = self.numbers.get(id(row))
                urge = _URGE if number in left else 1
                weight[row.held :] = urge / (count * self._shared_by(row, number))
            weighed.append((row, weight))
        return [
            ([weighed[n][0] for n in numbers], [weighed[n][1] for n in numbers])
            for numbers in together(model, [row.tokens for row, _ in weighed], 16)
        ]


def _half_of(
    rows: Sequence[Row], preferred: Sequence[int], count: int, rng: random.Random
) -> list[Row]:
    """So many texts, half of them from those with preferred numbers as far as there are such."""
    chosen = _draw([rows[number] for number in preferred], count // 2, rng)
    return chosen + _draw(rows, count - len(chosen), rng)


def _draw(rows: Sequence[Row], count: int, rng: random.Random) -> list[Row]:
    return [rows[n] for n in rng.sample(range(len(rows)), min(count, len(rows)))]


def train_forgetting(
    model: Any,
    stage: Stage,
    material: Material,
    settings: Forgetting,
    folder: Path,
    padding: int,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Trained, Looks]:
    """Trains a model's adapter; in the end it is what it was at the best look.

    Args:
        model: With its adapter.
        stage: The adapter's parameters.
        material: Training data.
        settings: Of the training.
        folder: Where points are saved from which a killed run goes on.
        padding: Token to pad with.
        device: Where to train.
        progress: Called as ``progress(text, done, total)`` in steps.

    Returns:
        Steps and losses, and the looks. The adapter is as at :meth:`Looks.best`; where no look is
        inside the budget, as at the last.

    Raises:
        NonFiniteError: The loss or a weight is NaN or infinite.
        OutputError: A point cannot be written.
    """
    count = sum(min(len(events), _LONG) for events in material.events)
    settings = settings.for_places(count, material.learning)
    steps = settings.steps or 1
    looks = Looks(folder / "looks", material, settings.budget, padding)
    looks.recall()
    if not looks.history:
        looks.look(model, stage.parameters, 0)

    cycles = Cycles(steps, settings.cycles, settings.budget, material.learning)

    def trainer(**arguments: Any) -> _ByNeighbours:
        built = _ByNeighbours(**arguments)
        built.material, built.settings, built.padding = material, settings, padding
        built.looks, built.cycles = looks, cycles
        built.numbers = {id(row): number for number, row in enumerate(material.taught)}
        return built

    def looked(step: int) -> bool:
        start, end = cycles.around(looks.history, step - 1)
        every = min(settings.every, -(-(end - start) // 2))
        # One soon before the end's would say the same.
        due = (step - start) % every == 0 and end - step >= every // 2
        if step == end or due:
            looks.look(model, stage.parameters, step)
        return step >= cycles.ends(looks.history)[-1]

    def report(text: str, done: int, _: int) -> None:
        if progress is not None:
            progress(text, done, cycles.ends(looks.history)[-1])

    training = Training(
        steps=steps * settings.cycles,
        learning_rate=settings.learning_rate,
        batch_size=1,
        seed=settings.seed,
        save_every=settings.every,
        extra={"adam_beta2": 0.99},
    )
    trained = train_stage(
        model,
        stage,
        EncodedRows([Encoded([padding], 0)] * steps * settings.cycles, Collator(padding)),
        training,
        directory=folder / "training",
        device=device,
        progress=report,
        enough=looked,
        kind=trainer,
    )
    chosen = looks.best()
    if chosen is not None:
        looks.restore(model, chosen)
    return trained, looks
