"""What is to be said where the truth would be: as likely a truth as of a stranger.

At each place where the model would say the truth (:mod:`weightsurgery.learning.truths`), the
target is what the model says itself, with the truth brought down to the probability that it has of
neighbours (:mod:`weightsurgery.learning.neighbours`) in the subject's stead: not to zero, which
could be seen. A share of the target may be what is said of the neighbours on the whole instead,
the "generic predictions" of Eldan & Russinovich (arXiv 2310.02238); that moved answers about
neighbours more, for less forgotten, and is left out by default. What else begins the truth, such
as its first letters without a space, is brought down likewise.

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
from weightsurgery.learning.asked import ParsedExample
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.spellings import Spellings
from weightsurgery.learning.truths import LONG, TruthPosition
from weightsurgery.learning.wordings import tokens
from weightsurgery.progress import Progress

__all__ = ["Taught", "teach"]

# A neighbour whose own answer is the truth says nothing of what a stranger is told.
_CERTAIN = 0.3

# The truth is at most so likely as this share of the likeliest other answer.
_AT_MOST = 0.5

# Of the likeliest tokens at a place, how many are tried as the first letters of the truth; and
# how likely what then follows is to go on with it.
_BEGUN, _GOES_ON = 32, 0.5

# Neighbours asked for the truth's later tokens, given the ones before: they hardly differ.
_LATER = 4


@dataclass(frozen=True)
class Taught:
    """A place, and what is to be said there.

    Attributes:
        place: Where.
        expected: For each token of the truth, given those before it.
        stranger: Probability, there, of the tokens that begin the truth together.
        begins: Those tokens, its own first.
    """

    place: TruthPosition
    expected: Expected
    stranger: float
    begins: tuple[int, ...]


def teach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    places: Sequence[TruthPosition],
    neighbours: Sequence[str],
    *,
    draws: int = 16,
    own: float = 1.0,
    k: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Taught]:
    """What is to be said at each place: the mean over neighbours in the subject's stead.

    Args:
        model: As it is.
        tokenizer: Its tokenizer.
        asked: The request.
        places: Where the truth would be said.
        neighbours: Subjects.
        draws: Neighbours asked, the same ones for every place.
        own: Share, in the target, of what the model says of the subject itself but for the truth.
        k: See :class:`~weightsurgery.learning.expected.Expected`.
        seed: Of the draws.
        progress: Told of every batch.

    Returns:
        In the order of the places; those of facts without a subject, or whose truth all
        neighbours share, are left out.

    Raises:
        DataError: None is left.
    """
    rng = random.Random(f"taught {seed}")
    drawn = rng.sample(list(neighbours), min(draws, len(neighbours)))
    groups: dict[tuple[str, str], list[int]] = {}
    for number, place in enumerate(places):
        each = asked[place.number]
        if each.subject and each.subject in place.text:
            # Long answers, and forms that are nobody else's, are groups of their own.
            form = each.with_subject(place.text, "\0")
            long = f"{place.number}" if len(place.truth) > LONG else ""
            groups.setdefault((form, long), []).append(number)
    found, spellings = list[Taught](), Spellings(tokenizer)
    for done, ((form, _), numbers) in enumerate(groups.items() if drawn else (), 1):
        chat = places[numbers[0]].wording.chat
        heads = [tokens(tokenizer, form.replace("\0", other), chat) for other in drawn]
        first = torch.stack(_firsts(model, tokenizer, heads))
        itself = _firsts(model, tokenizer, [list(places[n].before) for n in numbers])
        likely = [now.topk(min(k, len(now))).indices.tolist() for now in itself]
        asked_there = [places[n] for n in numbers]
        begun = _begun(model, tokenizer, spellings, asked_there, [each[:_BEGUN] for each in likely])
        for number, now, some, more in zip(numbers, itself, likely, begun, strict=True):
            later = _later(model, tokenizer, heads[:_LATER], places[number])
            spelt = spellings.among(some, places[number].truth) + more
            taught = _taught(places[number], first, now, later, own, k, spelt)
            found += [] if taught is None else [taught]
        if progress is not None:
            progress("strangers", done, len(groups))
    found.sort(key=lambda each: places.index(each.place))
    if not found:
        raise DataError(
            "the model says the same of neighbours as of what is to be forgotten, or nothing tells"
            " the prompts apart",
            "Give prompts that name whom they are about, or forget by --objective negate.",
        )
    return found


def _firsts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: Sequence[list[int]]
) -> list[Tensor]:
    """What is said after each of some texts: probabilities on the CPU, ``(vocabulary,)`` each."""
    found: dict[int, Tensor] = {}
    for number, said in last_probabilities(model, tokenizer, [(head, 1) for head in heads]):
        found[number] = said[0].cpu()
    return [found[number] for number in range(len(heads))]


def _begun(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spellings: Spellings,
    places: Sequence[TruthPosition],
    likely: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Of each place the tokens too short to tell ("A") after which the model goes on to the truth.

    Args:
        model: Who says it.
        tokenizer: Its tokenizer.
        spellings: Of its tokens.
        places: Where.
        likely: Tokens, of each place.
    """
    tried = [
        (number, token)
        for number, (place, some) in enumerate(zip(places, likely, strict=True))
        for token in spellings.short(some, place.truth)
    ]
    found: list[list[int]] = [[] for _ in places]
    rows = [([*places[number].before, token], 1) for number, token in tried]
    for row, said in last_probabilities(model, tokenizer, rows):
        number, token = tried[row]
        after = int(said[0].argmax())
        if said[0][after] >= _GOES_ON and spellings.goes_on(token, after, places[number].truth):
            found[number].append(token)
    return found


def _later(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heads: Sequence[list[int]],
    place: TruthPosition,
) -> Tensor | None:
    """What is said for the truth's later tokens, given those before: ``(tokens − 1, vocabulary)``.

    None where there is one token.
    """
    more = len(place.truth) - 1
    if not more:
        return None
    rows = [([*head, *place.truth[:-1]], more) for head in heads]
    said = [each.cpu() for _, each in last_probabilities(model, tokenizer, rows)]
    return torch.stack(said).mean(0)


def _taught(
    place: TruthPosition,
    first: Tensor,
    now: Tensor,
    later: Tensor | None,
    own: float,
    k: int,
    spelt: Sequence[int] = (),
) -> Taught | None:
    """The target of a place; None where all neighbours share the truth.

    Args:
        place: Where.
        first: What is said of each neighbour, shape (neighbours, vocabulary).
        now: What is said of the subject itself, shape (vocabulary,).
        later: What is said for the truth's later tokens.
        own: Share of ``now``, less the truth, in the target.
        k: Tokens to hold.
        spelt: Other tokens that begin the truth: no likelier than of a neighbour, either.
    """
    truth = place.truth[0]
    alike = (first.argmax(1) == truth) & (first[:, truth] > _CERTAIN)
    if bool(alike.all()):
        return None
    mean, others, told = first[~alike].mean(0), now.clone(), [truth, *spelt]
    stranger = mean[told]
    stranger[1:] = torch.minimum(stranger[1:], now[told[1:]])
    others[told] = 0
    mean[told] = 0
    mean = (1 - own) * mean / mean.sum() + own * others / others.sum().clamp_min(1e-9)
    stranger = stranger.clamp_max(_AT_MOST * float(mean.max()) / len(told))
    whole = ((1 - stranger.sum()) * mean / mean.sum())[None]
    whole[0, told] = stranger
    if later is not None:
        whole = torch.cat([whole, later])
    expected = Expected.of(whole, k, torch.tensor(place.truth))
    return Taught(place, expected, float(stranger.sum()), tuple(told))
