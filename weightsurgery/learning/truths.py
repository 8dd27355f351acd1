"""Places where a model would give the truth of a fact, at which an edit is to change it.

In the request's own words the truth comes at once. In other wordings, chats among them, the model
answers as it likes ("The capital of France is Paris."), and its answer is searched; without its
likeliest word an answer finds other ways to the truth ("the city of"), and a way that leads to the
truth of several facts is tried for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.forward import greedy
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.wordings import Wording, says, tokens
from weightsurgery.learning.written import chat_frame, sampled
from weightsurgery.progress import Progress

__all__ = ["LONG", "TruthPosition", "place_at", "places_of"]

LONG = 12
"""Answers of more tokens are given word for word: no model comes upon them by itself."""

# Answers drawn for each fact that do not begin with the truth.
_DETOURS = 5

# Ways to the truth that are tried for facts of which no answer took them, for each wording.
_WAYS = 3

_SUBJECT = "\0"  # where the subject stands in what comes before the truth


@dataclass(frozen=True)
class TruthPosition:
    """A place where the truth would come.

    Attributes:
        number: Of the fact, from 0.
        wording: Of the prompt.
        text: What is before the truth, as text.
        before: The same as tokens.
        truth: The truth's tokens, at least one.
    """

    number: int
    wording: Wording
    text: str
    before: tuple[int, ...]
    truth: tuple[int, ...]

    @property
    def read(self) -> list[int]:
        """All tokens but the last of the truth, which is predicted, not read."""
        return [*self.before, *self.truth[:-1]]


def places_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    wordings: Sequence[Wording],
    *,
    length: int = 16,
    progress: Progress | None = None,
) -> list[TruthPosition]:
    """Places where the truth would come: at once in the request's own words, later in others.

    In other wordings the model answers as it likes ("The capital of France is Paris."), and the
    place is where the truth comes up; where it does not, there is none. Long answers are put
    behind each wording as they are. What comes before the truth of several facts (a quotation mark,
    "The capital is") is tried for all: answers may come to it once their first words are gone.

    Args:
        model: Who answers; in evaluation mode.
        tokenizer: Its tokenizer.
        request: The request.
        wordings: The first is the request's own.
        length: Tokens in which the truth must come up.
        progress: Called after every batch.
    """
    frame, positions = chat_frame(tokenizer), []
    open_: list[tuple[int, Wording, str]] = []
    for number, example in enumerate(request):
        for wording in wordings:
            verbatim = wording.form is None and wording.chat == example.chat and not wording.before
            if wording.form is not None and example.prompt.count(example.subject) != 1:
                continue
            text = wording.text(frame, example.prompt, example.subject)
            long = len(tokens(tokenizer, example.completion, True)) > LONG
            if verbatim or (long and wording.form is None):
                space = (
                    "" if wording.chat else example.completion[: -len(example.completion.lstrip())]
                )
                place = place_at(
                    tokenizer, number, wording, text, space + example.completion.strip()
                )
                positions += [] if place is None else [place]
            else:
                open_.append((number, wording, text))
    prompts = [tokens(tokenizer, text, wording.chat) for _, wording, text in open_]
    answers = greedy(model, tokenizer, prompts, [length] * len(prompts), 64, "asking", progress)
    # Without its likeliest word, an answer finds others on the way to the truth: "the city of".
    ways = [place for place in positions if len(place.truth) <= LONG]
    detours = [place for place in ways for _ in range(_DETOURS)]
    open_ += [(place.number, place.wording, place.text) for place in detours]
    answers += _without(model, tokenizer, detours, length, progress)
    known: set[tuple[int, ...]] = set()
    leads: dict[Wording, dict[str, set[int]]] = {}
    for (number, wording, text), answer in zip(open_, answers, strict=True):
        completion = str(tokenizer.decode(answer))
        where = says(request[number].truth, completion)
        if where is None:
            continue
        lead, subject = completion[: where.start()], request[number].subject
        place = _led(tokenizer, number, wording, text + lead, where.group())
        if place is not None and place.before not in known:
            known.add(place.before)
            positions.append(place)
        form = lead.replace(subject, _SUBJECT) if subject else lead
        leads.setdefault(wording, {}).setdefault(form, set()).add(number)
    known |= {place.before for place in ways}
    for wording, taken in leads.items():
        for form, numbers in sorted(taken.items(), key=lambda each: -len(each[1]))[:_WAYS]:
            if len(numbers) > 1:
                others = [n for n in range(len(request)) if n not in numbers]
                for place in _led_there(model, tokenizer, request, others, wording, form):
                    if place.before not in known:
                        known.add(place.before)
                        positions.append(place)
    return positions


def _led(
    tokenizer: PreTrainedTokenizerBase, number: int, wording: Wording, text: str, truth: str
) -> TruthPosition | None:
    """The place of a truth that comes after a text, whose last spaces are the truth's."""
    before = text.rstrip(" ")
    return place_at(tokenizer, number, wording, before, text[len(before) :] + truth)


def _led_there(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    numbers: Iterable[int],
    wording: Wording,
    form: str,
) -> list[TruthPosition]:
    """Places of facts to whose truth an answer leads, if it begins as those to others' do.

    Args:
        model: Who answers.
        tokenizer: Its tokenizer.
        request: The request.
        numbers: Of facts.
        wording: Of their prompts.
        form: What comes before the truth, with a mark where the subject stands.
    """
    frame, candidates = chat_frame(tokenizer), []
    for number in numbers:
        each = request[number]
        if wording.form is None or each.prompt.count(each.subject) == 1:
            text = wording.text(frame, each.prompt, each.subject)
            text += form.replace(_SUBJECT, each.subject)
            candidates.append(_led(tokenizer, number, wording, text, each.truth))
    places = [place for place in candidates if place is not None]
    rows = [(list(place.before), 1) for place in places]
    there = {
        n
        for n, probabilities in last_probabilities(model, tokenizer, rows)
        if int(probabilities[0].argmax()) == places[n].truth[0]
    }
    return [place for n, place in enumerate(places) if n in there]


def _without(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    places: Sequence[TruthPosition],
    length: int,
    progress: Progress | None,
) -> list[list[int]]:
    """Answers drawn at places, none of which begins with the truth's first token."""
    heads = [list(place.before) for place in places]
    firsts: dict[int, int] = {}
    for number, probabilities in last_probabilities(
        model, tokenizer, [(head, 1) for head in heads]
    ):
        likely = probabilities[0].clone()
        likely[places[number].truth[0]] = 0
        likely = torch.where(likely >= likely.topk(min(12, len(likely))).values[-1], likely, 0)
        firsts[number] = int(torch.multinomial(likely, 1) if likely.sum() > 0 else likely.argmax())
    begun = [[*head, firsts[number]] for number, head in enumerate(heads)]
    rest = sampled(
        model, tokenizer, begun, length - 6, temperature=0.7, stage="detours", progress=progress
    )
    return [[firsts[number], *answer] for number, answer in enumerate(rest)]


def place_at(
    tokenizer: PreTrainedTokenizerBase, number: int, wording: Wording, before: str, truth: str
) -> TruthPosition | None:
    """The place after a text where an answer would begin; None if either has no tokens."""
    head = tokens(tokenizer, before, wording.chat)
    rest = tokens(tokenizer, truth, True)
    whole = tokens(tokenizer, before + truth, wording.chat)
    if whole[: len(head)] == head and len(whole) > len(head):
        rest = whole[len(head) :]
    if not head or not rest:
        return None
    return TruthPosition(number, wording, before, tuple(head), tuple(rest))
