"""Evaluations of a model while it is trained to forget, with its trained values at each ("looks").

The best look inside a budget counts, and a run that goes on after a kill reads those it had. Texts
that a look finds not yet forgotten, or moved, are trained on more until the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from weightsurgery.checkpoint.plain_files import write_whole
from weightsurgery.learning.expected import Expected, divergences, log_probability_of
from weightsurgery.learning.last_places import last_logits, together
from weightsurgery.learning.material import Material, Row
from weightsurgery.learning.models import in_halves
from weightsurgery.learning.points import save_tensors, writing
from weightsurgery.learning.stages import set_values, values_of

__all__ = ["Look", "Looks", "divergence", "logits_of", "truth_probability"]

# Shares that differ by less are as good: some answers are held by a hair.
_EQUAL = 0.05

# What the truth may keep of its probability beyond a stranger's, or lack to certainty, and in how
# many places it may still, or not yet, be the likeliest answer, for a look to have seen enough.
_FAR, _STILL = 0.15, 0.05

# From this probability on a truth is not yet gone, though it be not the likeliest.
_NEAR = 0.1

_NEIGHBOURS = 64  # texts about them that a look reads, at most


@dataclass(frozen=True)
class Look:
    """An evaluation of the model in training.

    Attributes:
        step: After so many steps; 0 before any.
        known: Share of the places to change where the truth is the likeliest answer.
        truth: Mean probability of the truth there.
        stranger: What it is to be.
        language: Divergence from the model as it was on text not trained on, nats a token.
        neighbours: The same on a sample of answers about neighbours.
        left: Numbers of the places where there is more to do: where it still is, or nearly, or not
            yet.
        moved: Numbers of the texts about neighbours that moved most, a quarter of those.
    """

    step: int
    known: float
    truth: float
    stranger: float
    language: float
    neighbours: float
    left: tuple[int, ...] = ()
    moved: tuple[int, ...] = ()

    def inside(self, budget: float) -> bool:
        """Whether ordinary language is as it was, as far as the budget says."""
        return self.language <= budget

    def far(self, first: Look, learning: bool) -> bool:
        """Whether it is forgotten, or learned, so far that the rest may settle."""
        goal, known = (1.0, 1 - self.known) if learning else (self.stranger, self.known)
        way = abs(self.truth - goal) <= _FAR * abs(first.truth - goal)
        return way and known <= _STILL


class Looks:
    """The looks of a training, and the trained values at each.

    Args:
        folder: Where the values are saved, so that a run that goes on after a kill has them.
        material: Training data and held-out texts.
        budget: Divergence of ordinary language, nats a token, beyond which no look counts.
        padding: Token to pad with.
    """

    def __init__(self, folder: Path, material: Material, budget: float, padding: int) -> None:
        self.folder, self.material, self.budget = folder, material, budget
        self.padding = padding
        self.history: list[Look] = []

    def look(self, model: Any, names: Sequence[str], step: int) -> Look:
        """Evaluate the model, and save its trained values."""
        model.eval()
        with torch.no_grad():
            learning = self.material.learning
            events = self.material.events
            count = sum(map(len, events))
            taught = [
                _question(row, learning, row_events[-1].at)
                for row, row_events in zip(self.material.taught, events, strict=True)
            ]
            known, left, truth = 0, [], 0.0
            for numbers, logits, _ in batched_logits(model, taught, self.padding):
                sizes = [len(taught[number].expected) for number in numbers]
                for row_logits, number in zip(
                    torch.split(logits.float(), sizes), numbers, strict=True
                ):
                    places = [event.at for event in events[number]]
                    begins = [event.tokens for event in events[number]]
                    likeliest = row_logits.argmax(1).tolist()
                    probabilities = log_probability_of(row_logits[places], begins).exp().tolist()
                    truth += sum(probabilities)
                    if learning:  # by all of the answer
                        answer = taught[number].expected.tokens[:, 0].tolist()
                        right = likeliest == answer
                        known += right
                        left += [] if right else [number]
                        continue
                    more = False
                    for event, probability in zip(events[number], probabilities, strict=True):
                        right = likeliest[event.at] in event.tokens and probability > event.known
                        known += right
                        more |= right or probability > max(_NEAR, event.known)
                    left += [number] if more else []
            language = _divergences(model, self.material.guard if step else [], self.padding)
            neighbours = self.material.kept["neighbours"]
            # An even sample: to read them all would take as long as four steps.
            most = min(len(neighbours), _NEIGHBOURS) if step else 0
            sampled = [each * len(neighbours) // most for each in range(most)]
            about = _divergences(model, [neighbours[n] for n in sampled], self.padding)
        moved = [sampled[n] for n in sorted(range(most), key=lambda n: -float(about[n].sum()))]
        look = Look(
            step,
            known / count,
            truth / count,
            sum(event.wanted for row in events for event in row) / count,
            _mean(language),
            _mean(about),
            tuple(sorted(left)),
            tuple(sorted(moved[: -(-len(moved) // 4)])),
        )
        model.train()
        self.history = [each for each in self.history if each.step < step] + [look]
        if step:
            with writing(self.folder):
                save_tensors(values_of(model, names), self._file(step), {})
        self._write()
        return look

    def _file(self, step: int) -> Path:
        return self.folder / f"look-{step:06d}.safetensors"

    def _write(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            serialised = json.dumps([vars(each) for each in self.history])
            write_whole(self.folder / "looks.json", serialised)

    def recall(self) -> None:
        """Read the looks of a run that was killed."""
        try:
            records = json.loads((self.folder / "looks.json").read_text(encoding="utf-8"))
            self.history = [
                Look(**{**each, "left": tuple(each["left"]), "moved": tuple(each["moved"])})
                for each in records
            ]
        except (OSError, ValueError, TypeError, KeyError):
            self.history = []

    def best(self) -> Look | None:
        """The last look inside the budget that forgot or learned about as much as any inside it.

        The rate falls to nothing, so that the later of two harms less. None where none is inside.
        """
        sign = -1 if self.material.learning else 1
        inside = [each for each in self.history[1:] if each.inside(self.budget)]
        most = min((sign * each.known for each in inside), default=0.0)
        equal = [each for each in inside if sign * each.known <= most + _EQUAL]
        return equal[-1] if equal else None

    def restore(self, model: Any, chosen: Look) -> None:
        """Give the model its trained values at a look."""
        set_values(model, load_file(self._file(chosen.step)))


def batched_logits(
    model: Any, rows: Sequence[Row], padding: int, size: int = 24
) -> Iterator[tuple[list[int], Tensor, Expected]]:
    """Logits at the places that count, a batch of rows at a time.

    Yields:
        The rows' numbers, logits of all their places, (places, vocabulary), and the targets there,
        on the same device.
    """
    for numbers in together(model, [row.tokens for row in rows], size):
        picked = [rows[n] for n in numbers]
        yield (numbers, *logits_of(model, picked, padding))


def logits_of(model: Any, rows: Sequence[Row], padding: int) -> tuple[Tensor, Expected]:
    """Logits at the places that count of a batch, (places, vocabulary), and their targets."""
    with in_halves(model):
        logits = last_logits(
            model, [row.tokens for row in rows], [len(row.expected) for row in rows], padding
        )
    return logits, Expected.joined([row.expected for row in rows]).to(logits.device)


def _divergences(model: Any, rows: Sequence[Row], padding: int) -> list[Tensor]:
    """Divergence of each text at its places that count, in nats."""
    by_text: dict[int, Tensor] = {}
    for numbers, logits, expected in batched_logits(model, rows, padding):
        values = divergences(expected, logits).double().cpu()
        by_text |= zip(
            numbers, torch.split(values, [len(rows[n].expected) for n in numbers]), strict=True
        )
    return [by_text[number] for number in range(len(rows))]


def divergence(model: Any, rows: Sequence[Row], padding: int) -> float:
    """Mean divergence from what the model said at first, over the places of texts, in nats."""
    return _mean(_divergences(model, rows, padding))


def truth_probability(
    model: Any, material: Material, padding: int, most: int = 32
) -> tuple[float, float]:
    """Mean probability of the truth where it is to be forgotten, and what it is to be there.

    Args:
        model: The model, with a change or not.
        material: The places.
        padding: Token to pad with.
        most: Texts that are read, an even sample.
    """
    count = min(most, len(material.taught))
    numbers = [each * len(material.taught) // count for each in range(count)]
    events = [material.events[number] for number in numbers]
    rows = [
        _question(material.taught[number], False, events[at][-1].at)
        for at, number in enumerate(numbers)
    ]
    total = 0.0
    for at_once, logits, _ in batched_logits(model, rows, padding):
        sizes = [len(rows[at].expected) for at in at_once]
        for row_logits, at in zip(torch.split(logits.float(), sizes), at_once, strict=True):
            places = row_logits[[event.at for event in events[at]]]
            truths = [event.tokens for event in events[at]]
            total += float(log_probability_of(places, truths).exp().sum())
    wanted = [event.wanted for each in events for event in each]
    return total / len(wanted), sum(wanted) / len(wanted)


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.cat(list(values)).mean()) if values else 0.0


def _question(row: Row, whole: bool, last: int) -> Row:
    """The text up to a place in the answer, 0 where it begins; or also the whole answer."""
    if whole:
        return Row(row.tokens, row.expected[slice(row.held, None)], 0, row.number)
    after = len(row.expected) - row.held - 1 - last
    stop = len(row.tokens) - after
    taught = row.expected[slice(row.held, row.held + last + 1)]
    return Row(row.tokens[:stop], taught, 0, row.number)
