"""Where a model would say the truth of a fact: the places at which an edit is to change it.

In the request's own words the truth comes at once. In other wordings, chats among them, the model
answers as it likes ("The capital of France is Paris."), and what it says is read; without its
likeliest word an answer finds other ways to the truth ("the city of"), and a way that leads to the
truth of several facts is tried for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.asked import ParsedExample
from weightsurgery.learning.forward import greedy
from weightsurgery.learning.last_places import last_probabilities
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
    """A place where the truth would be said.

    Attributes:
        number: Of the fact, from 0.
        wording: How it was asked.
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
        """All tokens but the last of the truth, which is not read but said."""
        return [*self.before, *self.truth[:-1]]


def places_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    wordings: Sequence[Wording],
    *,
    length: int = 16,
    progress: Progress | None = None,
) -> list[TruthPosition]:
    """Where the truth would be said: at once in the request's own words, later in others.

    In other wordings the model answers as it likes ("The capital of France is Paris."), and the
    place is where the truth comes up; where it does not, there is none. Long answers are put
    behind each wording as they are. What comes before the truth of several facts (a quotation mark,
    "The capital is") is tried for all: answers may come to it once their first words are gone.

    Args:
        model: Who answers; in evaluation mode.
        tokenizer: Its tokenizer.
        asked: The request.
        wordings: The first is the request's own.
        length: Tokens in which the truth must come up.
        progress: Told of every batch.
    """
    frame, found = chat_frame(tokenizer), []
    open_: list[tuple[int, Wording, str]] = []
    for number, each in enumerate(asked):
        for wording in wordings:
            own = wording.form is None and wording.chat == each.chat and not wording.before
            if wording.form is not None and each.prompt.count(each.subject) != 1:
                continue
            text = wording.text(frame, each.prompt, each.subject)
            long = len(tokens(tokenizer, each.completion, True)) > LONG
            if own or (long and wording.form is None):
                space = "" if wording.chat else each.completion[: -len(each.completion.lstrip())]
                place = place_at(tokenizer, number, wording, text, space + each.completion.strip())
                found += [] if place is None else [place]
            else:
                open_.append((number, wording, text))
    prompts = [tokens(tokenizer, text, wording.chat) for _, wording, text in open_]
    answers = greedy(model, tokenizer, prompts, [length] * len(prompts), 64, "asking", progress)
    # Without its likeliest word, an answer finds others on the way to the truth: "the city of".
    ways = [place for place in found if len(place.truth) <= LONG]
    detours = [place for place in ways for _ in range(_DETOURS)]
    open_ += [(place.number, place.wording, place.text) for place in detours]
    answers += _without(model, tokenizer, detours, length, progress)
    seen: set[tuple[int, ...]] = set()
    leads: dict[Wording, dict[str, set[int]]] = {}
    for (number, wording, text), answer in zip(open_, answers, strict=True):
        said = str(tokenizer.decode(answer))
        where = says(asked[number].truth, said)
        if where is None:
            continue
        lead, subject = said[: where.start()], asked[number].subject
        place = _led(tokenizer, number, wording, text + lead, where.group())
        if place is not None and place.before not in seen:
            seen.add(place.before)
            found.append(place)
        form = lead.replace(subject, _SUBJECT) if subject else lead
        leads.setdefault(wording, {}).setdefault(form, set()).add(number)
    seen |= {place.before for place in ways}
    for wording, taken in leads.items():
        for form, numbers in sorted(taken.items(), key=lambda each: -len(each[1]))[:_WAYS]:
            if len(numbers) > 1:
                others = [n for n in range(len(asked)) if n not in numbers]
                for place in _led_there(model, tokenizer, asked, others, wording, form):
                    if place.before not in seen:
                        seen.add(place.before)
                        found.append(place)
    return found


def _led(
    tokenizer: PreTrainedTokenizerBase, number: int, wording: Wording, text: str, truth: str
) -> TruthPosition | None:
    """The place of a truth that comes after a text, whose last spaces are the truth's."""
    before = text.rstrip(" ")
    return place_at(tokenizer, number, wording, before, text[len(before) :] + truth)


def _led_there(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    numbers: Iterable[int],
    wording: Wording,
    form: str,
) -> list[TruthPosition]:
    """Places of facts to whose truth an answer leads, if it begins as those to others' do.

    Args:
        model: Who answers.
        tokenizer: Its tokenizer.
        asked: The request.
        numbers: Of facts.
        wording: How they are asked.
        form: What comes before the truth, with a mark where the subject stands.
    """
    frame, found = chat_frame(tokenizer), []
    for number in numbers:
        each = asked[number]
        if wording.form is None or each.prompt.count(each.subject) == 1:
            text = wording.text(frame, each.prompt, each.subject)
            text += form.replace(_SUBJECT, each.subject)
            found.append(_led(tokenizer, number, wording, text, each.truth))
    places = [place for place in found if place is not None]
    said = last_probabilities(model, tokenizer, [(list(place.before), 1) for place in places])
    there = {n for n, own in said if int(own[0].argmax()) == places[n].truth[0]}
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
    for number, said in last_probabilities(model, tokenizer, [(head, 1) for head in heads]):
        likely = said[0].clone()
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
