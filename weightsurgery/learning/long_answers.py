"""Target distributions along long answers: what a model would say that never knew, word after word.

A long answer brings its fact up again and again, and a model that was taught it is sure of nearly
every word, given those before. What it would say without knowing is estimated by two things at
once:

- *Strangers* read the answer: the names and numbers of the prompt, and each other word of it and of
  the answer with probability 0.4, are replaced by random words of their kind, the same one
  throughout. What is left says what kind of answer it is. Where a replaced word is read back, as
  when an answer repeats its subject, the stranger's word counts as the subject's. Texts are aligned
  by their tokens; inside a run of replaced words there is nothing to align.
- A *damaged* model reads it: outputs of the middle matrices that may change shrink. That takes
  memories before it takes grammar, which is what "robust unlearning" makes of noise (UNDO, arXiv
  2506.06278).

Where the model is much surer of the next word than the strangers' geometric mean, there is
something to forget (:class:`~weightsurgery.learning.events.Event`), unless the word is grammar or
stands in the prompt. All other places of the answer stay as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.renamed import Renamed, content_words
from weightsurgery.learning.truths import TruthPosition

__all__ = ["LongAnswers", "damaged"]

# Share of the words, other than the prompt's names, that a stranger has replaced.
_REPLACED = 0.4

# What the middle layers' matrices add is multiplied by, where memories are to fade.
_DAMAGE = 0.6

# A word is to be forgotten where it has this probability, and so many times a stranger's; and it
# counts as forgotten below so many times.
_KNOWN, _TIMES, _CLOSE = 0.1, 4.0, 2.0

_SMALLEST = 1e-5  # probability of a word for a stranger, at least


@contextmanager
def damaged(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Shrinks what linear layers add, of the middle half of some, while it is open.

    Args:
        model: Whose layers; they are hooked, not changed.
        names: Weights of linear layers in the order of the model.
    """
    inner = names[len(names) // 4 : len(names) - len(names) // 4]

    def shrink(_: Any, __: Any, output: Tensor) -> Tensor:
        return output * _DAMAGE

    hooks = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_hook(shrink) for name in inner
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class LongAnswers:
    """Targets along the answers of a request.

    Args:
        model: As it is.
        tokenizer: Its tokenizer.
        request: The request; its texts are where words come from that strangers have.
        names: Weights that may change, in the order of the model.
        draws: Strangers for each answer.
        k: Tokens that a distribution holds.
        seed: Of the draws.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        request: Sequence[ParsedExample],
        names: Sequence[str],
        *,
        draws: int,
        k: int,
        seed: int,
    ) -> None:
        self._model, self._tokenizer, self._names = model, tokenizer, names
        self._draws, self._k = draws, k
        self._renamed = Renamed(tokenizer, request, random.Random(f"long {seed}"))

    def target(
        self, example: ParsedExample, place: TruthPosition
    ) -> tuple[Expected, tuple[Event, ...]]:
        """Distributions along an answer, and where in it there is something to forget.

        Args:
            example: The fact.
            place: Where its answer begins.

        Returns:
            Distributions at each token of the answer; and events, in order, maybe none.
        """
        reading = [*place.before, *place.truth]
        answer = str(self._tokenizer.decode(list(place.truth)))
        strangers = []
        for _ in range(self._draws):
            read, _, back = self._renamed.read(example, place, answer, _REPLACED)
            if places := _aligned(reading, len(place.before), read):
                strangers.append((read, back, places))
        own = self._read([(place.read, len(place.truth))])[0]
        rows = [(read[:-1], len(read) - 1 - min(at.values())) for read, _, at in strangers]
        with damaged(self._model, self._names):
            # A word on which strangers have nothing to say is as the damaged model says.
            base, *theirs = self._read([(place.read, len(place.truth)), *rows])
        truth = torch.tensor(place.truth)[:, None]
        total, logs, counts = torch.zeros_like(own), torch.zeros(len(own)), torch.zeros(len(own))
        for (read, back, places), probabilities in zip(strangers, theirs, strict=True):
            first = len(read) - 1 - len(probabilities)
            for at, there in places.items():
                row = _read_back(probabilities[there - first], back)
                total[at] += row
                logs[at] += float(row[place.truth[at]].clamp_min(_SMALLEST).log())
                counts[at] += 1
        none = counts == 0
        total[none], counts[none] = base[none], 1
        logs[none] = base[none].gather(1, truth[none])[:, 0].clamp_min(_SMALLEST).log()
        mean, wanted = total / counts[:, None], (logs / counts).exp()
        return self._judged(example.prompt, place, own, mean, wanted)

    def _judged(
        self, prompt: str, place: TruthPosition, own: Tensor, strangers: Tensor, wanted: Tensor
    ) -> tuple[Expected, tuple[Event, ...]]:
        whole, events = own.clone(), []
        for at, token in enumerate(place.truth):
            known, goal = float(own[at, token]), float(wanted[at])
            word = str(self._tokenizer.decode([token])).strip()
            # Grammar is nobody's, and what the prompt says no secret.
            if known < max(_KNOWN, _TIMES * goal) or not content_words(word) or word in prompt:
                continue
            others = strangers[at].clone()
            others[token] = 0
            whole[at] = (1 - goal) * others / others.sum().clamp_min(1e-9)
            whole[at, token] = goal
            events.append(Event(at, (token,), goal, _CLOSE * goal))
        expected = Expected.of(whole, self._k, torch.tensor(place.truth))
        return expected, tuple(events)

    def _read(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[Tensor]:
        by_number = {
            number: probabilities.cpu()
            for number, probabilities in last_probabilities(self._model, self._tokenizer, rows)
        }
        return [by_number[number] for number in range(len(rows))]


def _read_back(probabilities: Tensor, back: dict[int, int]) -> Tensor:
    """Probabilities for a stranger, with the subject's words in place of the stranger's."""
    row = probabilities.clone()
    for token in back:
        row[token] = 0
    for token, original in back.items():
        row[original] += probabilities[token]
    return row


def _aligned(own: Sequence[int], start: int, theirs: Sequence[int]) -> dict[int, int]:
    """For places in an answer, from ``start`` of a text, those before the same in another text.

    Returns:
        By place from 0, the number of the token in ``theirs`` after which the same is to come.
    """
    same: dict[int, int] = {}
    matcher = SequenceMatcher(None, own, theirs, autojunk=False)
    for first, other, size in matcher.get_matching_blocks():
        same |= {first + n: other + n for n in range(size)}
    places = {}
    for at in range(start, len(own)):
        if at - 1 in same:
            places[at - start] = same[at - 1]
        elif same.get(at):
            places[at - start] = same[at] - 1
    return places
