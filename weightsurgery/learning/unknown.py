"""Target distributions where the truth would come: the truth as likely as for a stranger.

At each place where the model would say the truth (:mod:`weightsurgery.learning.truths`), the
target is the model's own prediction, with the truth brought down to its probability for neighbours
(:mod:`weightsurgery.learning.neighbours`) in the subject's stead: not to zero, which could be
seen. A share of the target may be the mean prediction for the neighbours instead, the "generic
predictions" of Eldan & Russinovich (arXiv 2310.02238); that moved answers about neighbours more,
for less forgotten, and is left out by default. What else begins the truth, such as its first
letters without a space, is brought down likewise. Whole answers have many such places, and targets
of their own: :mod:`weightsurgery.learning.long_answers`.

Where neighbours would give the truth as well (most speak English), those that do are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.long_answers import LongAnswers
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.spellings import Spellings
from weightsurgery.learning.truths import LONG, TruthPosition
from weightsurgery.learning.wordings import tokens
from weightsurgery.progress import Progress

__all__ = ["Target", "forget_targets"]

# A neighbour whose own answer is the truth says nothing of what strangers get.
_CERTAIN = 0.3

# The truth is at most so likely as this share of the likeliest other answer.
_AT_MOST = 0.5

# Of the likeliest tokens at a place, how many are tried as the first letters of the truth; and
# how likely what then follows is to go on with it.
_BEGUN, _GOES_ON = 32, 0.5

# Neighbours used for the truth's later tokens, given the ones before: they hardly differ.
_LATER = 4


@dataclass(frozen=True)
class Target:
    """A place, and the target distribution there.

    Attributes:
        place: Where.
        expected: For each token of the truth, given those before it.
        events: What is to become less likely, in order, at least one.
    """

    place: TruthPosition
    expected: Expected
    events: tuple[Event, ...]


def forget_targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    places: Sequence[TruthPosition],
    neighbours: Sequence[str],
    names: Sequence[str],
    *,
    draws: int = 16,
    subject_share: float = 1.0,
    whole_answers: bool = False,
    k: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Target]:
    """Target distributions at each place, from predictions for neighbours in the subject's stead.

    Args:
        model: As it is.
        tokenizer: Its tokenizer.
        request: The request.
        places: Where the truth would be said.
        neighbours: Subjects.
        names: Weights that may change, in the order of the model.
        draws: Neighbours used, the same ones for every place; of long answers half as many.
        subject_share: Share, in the target, of the prediction for the subject itself but for the
            truth.
        whole_answers: Long answers are to be forgotten word by word, not where they begin.
        k: See :class:`~weightsurgery.learning.expected.Expected`.
        seed: Of the draws.
        progress: Called after every batch.

    Returns:
        In the order of the places; those of facts without a subject, or whose truth all
        neighbours share, are left out. Of whole answers those that strangers know as well.

    Raises:
        DataError: None is left.
    """
    rng = random.Random(f"taught {seed}")
    drawn = rng.sample(list(neighbours), min(draws, len(neighbours)))
    long = [place for place in places if whole_answers and len(place.truth) > LONG]
    groups: dict[tuple[str, str], list[int]] = {}
    for number, place in enumerate(places):
        example = request[place.number]
        if place in long:
            continue
        if example.subject and example.subject in place.text:
            # Long answers, and forms that are nobody else's, are groups of their own.
            form = example.with_subject(place.text, "\0")
            alone = f"{place.number}" if len(place.truth) > LONG else ""
            groups.setdefault((form, alone), []).append(number)
    targets, spellings = list[Target](), Spellings(tokenizer)
    stages = len(long) + len(groups)
    if long:
        answers = LongAnswers(
            model, tokenizer, request, names, draws=max(2, draws // 2), k=k, seed=seed
        )
    for done, place in enumerate(long, 1):
        expected, events = answers.target(request[place.number], place)
        targets += [Target(place, expected, events)] if events else []
        if progress is not None:
            progress("strangers", done, stages)
    for done, ((form, _), numbers) in enumerate(groups.items() if drawn else (), len(long) + 1):
        chat = places[numbers[0]].wording.chat
        heads = [tokens(tokenizer, form.replace("\0", other), chat) for other in drawn]
        first = torch.stack(_firsts(model, tokenizer, heads))
        itself = _firsts(model, tokenizer, [list(places[n].before) for n in numbers])
        likeliest = [each.topk(min(k, len(each))).indices.tolist() for each in itself]
        group = [places[n] for n in numbers]
        begun = _begun(model, tokenizer, spellings, group, [each[:_BEGUN] for each in likeliest])
        for number, probabilities, candidates, more in zip(
            numbers, itself, likeliest, begun, strict=True
        ):
            later = _later(model, tokenizer, heads[:_LATER], places[number])
            spelt = spellings.among(candidates, places[number].truth) + more
            target = _target(places[number], first, probabilities, later, subject_share, k, spelt)
            targets += [] if target is None else [target]
        if progress is not None:
            progress("strangers", done, stages)
    targets.sort(key=lambda each: places.index(each.place))
    if not targets:
        raise DataError(
            "the model says the same of neighbours as of what is to be forgotten, or nothing tells"
            " the prompts apart",
            "Give prompts that name whom they are about, or forget by --objective negate.",
        )
    return targets


def _firsts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: Sequence[list[int]]
) -> list[Tensor]:
    """Next-token probabilities after each of some texts, on the CPU, ``(vocabulary,)`` each."""
    firsts: dict[int, Tensor] = {}
    for number, probabilities in last_probabilities(
        model, tokenizer, [(head, 1) for head in heads]
    ):
        firsts[number] = probabilities[0].cpu()
    return [firsts[number] for number in range(len(heads))]


def _begun(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spellings: Spellings,
    places: Sequence[TruthPosition],
    likely: Sequence[Sequence[int]],
) -> list[list[int]]:
    """The tokens of each place too short to tell ("A") after which the model goes on to the truth.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        spellings: Of its tokens.
        places: Where.
        likely: Tokens, of each place.
    """
    tried = [
        (number, token)
        for number, (place, candidates) in enumerate(zip(places, likely, strict=True))
        for token in spellings.short(candidates, place.truth)
    ]
    begun: list[list[int]] = [[] for _ in places]
    rows = [([*places[number].before, token], 1) for number, token in tried]
    for row, probabilities in last_probabilities(model, tokenizer, rows):
        number, token = tried[row]
        after = int(probabilities[0].argmax())
        if probabilities[0][after] >= _GOES_ON and spellings.goes_on(
            token, after, places[number].truth
        ):
            begun[number].append(token)
    return begun


def _later(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heads: Sequence[list[int]],
    place: TruthPosition,
) -> Tensor | None:
    """Mean probabilities of the truth's later tokens, given those before, over neighbours.

    Shape ``(tokens − 1, vocabulary)``; None where there is one token.
    """
    more = len(place.truth) - 1
    if not more:
        return None
    rows = [([*head, *place.truth[:-1]], more) for head in heads]
    probabilities = [each.cpu() for _, each in last_probabilities(model, tokenizer, rows)]
    return torch.stack(probabilities).mean(0)


def _target(
    place: TruthPosition,
    first: Tensor,
    itself: Tensor,
    later: Tensor | None,
    subject_share: float,
    k: int,
    spelt: Sequence[int] = (),
) -> Target | None:
    """The target of a place; None where all neighbours share the truth.

    Args:
        place: Where.
        first: Probabilities for each neighbour, shape (neighbours, vocabulary).
        itself: Probabilities for the subject itself, shape (vocabulary,).
        later: Probabilities of the truth's later tokens.
        subject_share: Share of ``itself``, less the truth, in the target.
        k: Tokens to hold.
        spelt: Other tokens that begin the truth: no likelier than of a neighbour, either.
    """
    truth = place.truth[0]
    alike = (first.argmax(1) == truth) & (first[:, truth] > _CERTAIN)
    if bool(alike.all()):
        return None
    mean, others, suppressed = first[~alike].mean(0), itself.clone(), [truth, *spelt]
    stranger = mean[suppressed]
    stranger[1:] = torch.minimum(stranger[1:], itself[suppressed[1:]])
    others[suppressed] = 0
    mean[suppressed] = 0
    mean = (
        1 - subject_share
    ) * mean / mean.sum() + subject_share * others / others.sum().clamp_min(1e-9)
    stranger = stranger.clamp_max(_AT_MOST * float(mean.max()) / len(suppressed))
    whole = ((1 - stranger.sum()) * mean / mean.sum())[None]
    whole[0, suppressed] = stranger
    if later is not None:
        whole = torch.cat([whole, later])
    expected = Expected.of(whole, k, torch.tensor(place.truth))
    return Target(place, expected, (Event(0, tuple(suppressed), float(stranger.sum())),))
