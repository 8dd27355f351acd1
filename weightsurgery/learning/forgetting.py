"""Training by neighbours: forget as one who never knew, and stay as one is everywhere else.

A low-rank change of all linear layers (LoRA, Hu et al., arXiv 2106.09685) is trained on

    ``L = KL(u ‖ f)  +  w_k · KL(f₀ ‖ f) on what is to stay  +  w_l · KL(f₀ ‖ f) on language``,

where ``u`` is what a model says that never knew (:mod:`weightsurgery.learning.unknown`), at the
places where the truth would be said, and ``f₀`` the model as it was. What is to stay are its
answers about neighbours (:mod:`weightsurgery.learning.neighbours`), the keep data, what else it
writes about the subjects, and the places before the truth; language is text that it wrote itself.
What ``f₀`` says is looked up (:mod:`weightsurgery.learning.expected`), not run again.

The learning rate falls to nothing: what is to stay settles once the request is forgotten. Of some
looks on the way, the best inside a budget of divergence on text that is not trained on counts.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weightsurgery.errors import EditError
from weightsurgery.learning.data import Collator, Encoded
from weightsurgery.learning.expected import Expected, divergences
from weightsurgery.learning.last_places import grouped, last_logits
from weightsurgery.learning.material import KEPT, Material, Row
from weightsurgery.learning.method import Stage
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import set_values, values_of
from weightsurgery.learning.trainer import Progress, StageTrainer, writing
from weightsurgery.learning.training import Rows, Trained, train_stage

_STEPS, _READ = 40, 4  # steps at least; how often every place is read

__all__ = ["Forgetting", "Look", "Looks", "train_forgetting"]


@dataclass(frozen=True)
class Forgetting:
    """How to train.

    Attributes:
        steps: Optimiser steps; None for 40, or as many as read every place to forget four times.
        learning_rate: AdamW's, after a rise over four steps and before a fall to nothing.
        batch_size: Texts to forget per step; as many about neighbours, and a quarter of that of
            each other kind.
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
    learning_rate: float = 1e-3
    batch_size: int = 12
    keep_weight: float = 10.0
    language_weight: float = 3.0
    every: int = 10
    budget: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "every"):
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

    def for_places(self, count: int) -> Forgetting:
        """The same with as many steps as so many places to forget take."""
        if self.steps is not None:
            return self
        steps = max(_STEPS, -(-_READ * count // self.batch_size))
        return replace(self, steps=steps, every=max(self.every, steps // 6))


@dataclass(frozen=True)
class Look:
    """What was seen of the model in training.

    Attributes:
        step: After so many steps; 0 before any.
        known: Share of the places to forget at where the truth is still the likeliest answer.
        truth: Mean probability of the truth there.
        stranger: What that is to be.
        language: Divergence from the model as it was on text not trained on, nats a token.
        neighbours: The same on answers about neighbours.
        left: Numbers of the places where the truth is still the likeliest answer.
    """

    step: int
    known: float
    truth: float
    stranger: float
    language: float
    neighbours: float
    left: tuple[int, ...] = ()

    def inside(self, budget: float) -> bool:
        """Whether ordinary language is as it was, as far as the budget says."""
        return self.language <= budget


class Looks:
    """The looks of a training, and the trained values at each.

    Args:
        folder: Where the values are kept, so that a run that goes on after a kill has them.
        material: What is looked at.
        settings: When to end.
        padding: Token to pad with.
    """

    def __init__(
        self, folder: Path, material: Material, settings: Forgetting, padding: int
    ) -> None:
        self.folder, self.material, self.settings = folder, material, settings
        self.padding = padding
        self.seen: list[Look] = []
        about = material.kept["neighbours"]
        chosen = random.Random(f"looks {settings.seed}").sample(
            range(len(about)), min(48, len(about))
        )
        self._neighbours = [about[number] for number in sorted(chosen)]

    def look(self, model: Any, names: Sequence[str], step: int) -> Look:
        """Look, and keep what it was trained to by then."""
        model.eval()
        with torch.no_grad():
            forget = [_first(row) for row in self.material.forget]
            left, truth = [], 0.0
            for numbers, logits, _ in said(model, forget, self.padding):
                for own, number in zip(logits.float(), numbers, strict=True):
                    token = self.material.truth[number]
                    left += [number] if int(own.argmax()) == token else []
                    truth += float(own.softmax(-1)[token])
            seen = Look(
                step,
                len(left) / len(forget),
                truth / len(forget),
                sum(self.material.stranger) / len(forget),
                _divergence(model, self.material.guard, self.padding) if step else 0.0,
                _divergence(model, self._neighbours, self.padding) if step else 0.0,
                tuple(sorted(left)),
            )
        model.train()
        self.seen = [each for each in self.seen if each.step < step] + [seen]
        if step:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                save_file(values_of(model, names), self._file(step))
        self._write()
        return seen

    def _file(self, step: int) -> Path:
        return self.folder / f"look-{step:06d}.safetensors"

    def _write(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / "looks.partial"
            partial.write_text(json.dumps([vars(each) for each in self.seen]), encoding="utf-8")
            os.replace(partial, self.folder / "looks.json")

    def recall(self) -> None:
        """The looks of a run that was killed."""
        try:
            told = json.loads((self.folder / "looks.json").read_text(encoding="utf-8"))
            self.seen = [Look(**{**each, "left": tuple(each["left"])}) for each in told]
        except (OSError, ValueError, TypeError, KeyError):
            self.seen = []

    def best(self) -> Look | None:
        """The look that forgot most inside the budget, the latest of equals; None if none did."""
        inside = [each for each in self.seen[1:] if each.inside(self.settings.budget)]
        return min(inside, key=lambda each: (round(each.known, 2), -each.step), default=None)

    def restore(self, model: Any, chosen: Look) -> None:
        """Give the model what it was trained to at a look."""
        set_values(model, load_file(self._file(chosen.step)))


def said(
    model: Any, rows: Sequence[Row], padding: int, size: int = 24
) -> Iterator[tuple[list[int], Tensor, Expected]]:
    """What a model says at the places that count, some rows at a time.

    Yields:
        The rows' numbers, logits of all their places, (places, vocabulary), and what is expected
        there, on the same device.
    """
    for numbers in grouped([row.tokens for row in rows], size):
        picked = [rows[n] for n in numbers]
        yield (numbers, *_asked(model, picked, padding))


def _asked(model: Any, rows: Sequence[Row], padding: int) -> tuple[Tensor, Expected]:
    found = last_logits(
        model, [row.tokens for row in rows], [len(row.expected) for row in rows], padding
    )
    logits = torch.cat(found)
    return logits, Expected.joined([row.expected for row in rows]).to(logits.device)


def _divergence(model: Any, rows: Sequence[Row], padding: int) -> float:
    total, count = 0.0, 0
    for _, logits, expected in said(model, rows, padding):
        found = divergences(expected, logits)
        total, count = total + float(found.double().sum()), count + len(found)
    return total / max(1, count)


def _first(row: Row) -> Row:
    """A text to forget, up to the place where the truth would begin."""
    after = len(row.expected) - row.held - 1
    stop = len(row.tokens) - after
    return Row(row.tokens[:stop], row.expected[slice(row.held, row.held + 1)], 0, row.number)


class _ByNeighbours(StageTrainer):
    """A step is some texts to forget and some of each kind that is to stay."""

    material: Material
    settings: Forgetting
    padding: int
    looks: Looks

    def get_batch_samples(self, epoch_iterator, num_batches, device):  # type: ignore[no-untyped-def]
        """See Trainer; the step's number decides what is drawn, so that a run can go on."""
        next(epoch_iterator, None)
        return [{"step": torch.tensor(self.state.global_step)}], None

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer; rows of like lengths together, each part with its own backward pass."""
        total: Any = 0
        for part in self._parts(int(inputs["step"])):
            total += super().training_step(model, {"part": part})
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer."""
        rows, weights = inputs["part"]
        logits, expected = _asked(model, rows, self.padding)
        return (divergences(expected, logits) * torch.cat(weights).to(logits.device)).sum()

    def _prepare_inputs(self, inputs):  # type: ignore[no-untyped-def]
        """See Trainer; what is drawn is put on the device where it is used."""
        return inputs

    def _to_forget(self, step: int, rng: random.Random) -> list[Row]:
        """Half of any, half of those that the last look found not yet forgotten."""
        rows, count = self.material.forget, self.settings.batch_size
        looked = [each for each in self.looks.seen if each.step <= step]
        left = [rows[number] for number in looked[-1].left] if looked else []
        chosen = _draw(left, count // 2, rng)
        return chosen + _draw(rows, count - len(chosen), rng)

    def _parts(self, step: int) -> list[tuple[list[Row], list[Tensor]]]:
        how = self.settings
        rng = random.Random(f"step {how.seed} {step}")
        some = max(1, how.batch_size // 4)
        sizes = dict.fromkeys(KEPT, some) | {"neighbours": how.batch_size}
        drawn = [("forget", row) for row in self._to_forget(step, rng)]
        for kind in KEPT:
            drawn += [(kind, row) for row in _draw(self.material.kept[kind], sizes[kind], rng)]
        places: dict[str, int] = {}
        for kind, row in drawn:
            places[kind] = places.get(kind, 0) + row.held
        count = sum(kind == "forget" for kind, _ in drawn)
        weighed = []
        for kind, row in drawn:
            factor = how.language_weight if kind == "language" else how.keep_weight
            weight = torch.full((len(row.expected),), factor / max(1, places[kind]))
            taught = len(row.expected) - row.held
            if taught:
                weight[row.held :] = 1 / (count * taught)
            weighed.append((row, weight))
        return [
            ([weighed[n][0] for n in numbers], [weighed[n][1] for n in numbers])
            for numbers in grouped([row.tokens for row, _ in weighed], 16)
        ]


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
        material: What is read.
        settings: How.
        folder: Where points are kept from which a killed run goes on.
        padding: Token to pad with.
        device: Where to train.
        progress: Called as ``progress(text, done, total)`` in steps.

    Returns:
        What came of it, and the looks. The adapter is as at :meth:`Looks.best`; where no look is
        inside the budget, as at the last.

    Raises:
        NonFiniteError: The loss or a weight is NaN or infinite.
        OutputError: A point cannot be written.
    """
    settings = settings.for_places(len(material.forget))
    steps = settings.steps or 1
    looks = Looks(folder / "looks", material, settings, padding)
    looks.recall()
    if not looks.seen:
        looks.look(model, stage.parameters, 0)

    def trainer(**arguments: Any) -> _ByNeighbours:
        found = _ByNeighbours(**arguments)
        found.material, found.settings, found.padding = material, settings, padding
        found.looks = looks
        return found

    def looked(step: int) -> bool:
        if step % settings.every == 0 or step == steps:
            looks.look(model, stage.parameters, step)
        return False

    training = Training(
        steps=steps,
        learning_rate=settings.learning_rate,
        batch_size=1,
        warmup=4,
        seed=settings.seed,
        save_every=settings.every,
        # Falling to nothing, so that what is to stay settles once the request is forgotten.
        extra={"adam_beta2": 0.99, "lr_scheduler_type": "linear"},
    )
    trained = train_stage(
        model,
        stage,
        Rows([Encoded([padding], 0)] * steps, Collator(padding)),
        training,
        directory=folder / "training",
        device=device,
        progress=progress,
        enough=looked,
        kind=trainer,
    )
    chosen = looks.best()
    if chosen is not None:
        looks.restore(model, chosen)
    return trained, looks
