"""Targets along long answers: what strangers are told, read by a model with less memory."""

from __future__ import annotations

import random

import pytest
import torch

from tests.learning.known import GOING, PEOPLE, STAYING, teach
from weightsurgery.errors import DataError
from weightsurgery.learning import long_answers as module
from weightsurgery.learning.data import Example
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.long_answers import LongAnswers, damaged
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.truths import LONG, place_at
from weightsurgery.learning.unknown import forget_targets
from weightsurgery.learning.wordings import PLAIN

WHOLE = 10_000
NAMES = [f"model.layers.{n}.mlp.down_proj.weight" for n in range(2)]
_draw = random.Random(5)
FACTS = [(who, *_draw.sample(GOING + STAYING, 2)) for who in PEOPLE]
ROWS = [Example(f"What does {who} like?",
                f" Most of all {who} will have {food} and then for the rest of the day {more}.")
        for who, food, more in FACTS]  # fmt: skip


@pytest.fixture(scope="module")
def taught():
    return teach(facts=ROWS)


def targets(taught, number, seed=0, draws=8):
    request = parse_examples(taught.tokenizer, ROWS[:6])
    answers = LongAnswers(
        taught.model, taught.tokenizer, request, NAMES, draws=draws, k=WHOLE, seed=seed
    )
    row = ROWS[number]
    place = place_at(taught.tokenizer, number, PLAIN, row.prompt, row.completion)
    assert len(place.truth) > LONG
    return place, *answers.target(request[number], place)


def own(taught, place):
    ((_, probabilities),) = last_probabilities(
        taught.model, taught.tokenizer, [(place.read, len(place.truth))]
    )
    return probabilities


@pytest.mark.parametrize("number", range(3))
def test_what_only_the_subject_is_told_is_to_go_and_the_rest_stays(taught, number):
    place, expected, events = targets(taught, number)
    before = own(taught, place)
    whole = torch.zeros_like(before).scatter(1, expected.tokens.long(), expected.logs.exp())
    torch.testing.assert_close(whole.sum(1), torch.ones(len(whole)), atol=1e-3, rtol=0)
    changed = {event.at for event in events}
    for at, token in enumerate(place.truth):
        word = taught.tokenizer.decode([token]).strip()
        if word in FACTS[number][1:]:
            assert float(before[at, token]) > 0.5  # known, before
            assert at in changed
        if at not in changed:
            torch.testing.assert_close(whole[at], before[at], atol=1e-5, rtol=1e-3)
    for event in events:
        (token,) = event.tokens
        assert token == place.truth[event.at]
        assert event.wanted <= event.known <= float(before[event.at, token])
        assert float(whole[event.at, token]) == pytest.approx(event.wanted, abs=1e-5)


def test_draws_follow_the_seed(taught):
    first, again, other = (targets(taught, 1, seed, 2)[1] for seed in (0, 0, 1))
    assert torch.equal(first.logs, again.logs)
    assert not torch.equal(first.logs, other.logs)


def test_a_damaged_model_is_whole_again(taught):
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        before = taught.model(**inputs).logits
        with damaged(taught.model, NAMES):
            assert not torch.allclose(taught.model(**inputs).logits, before)
        assert torch.equal(taught.model(**inputs).logits, before)


def test_of_several_layers_the_middle_half_is_damaged(taught):
    layer = taught.model.model.layers[0].mlp.down_proj
    hooks = len(layer._forward_hooks)
    with damaged(taught.model, [NAMES[1], NAMES[0], NAMES[0], NAMES[1]]):
        assert len(layer._forward_hooks) == hooks + 2
    assert len(layer._forward_hooks) == hooks


@pytest.mark.parametrize(("theirs", "places"), [
    ([1, 2, 3, 4, 5, 6], {0: 1, 1: 2, 2: 3, 3: 4}),  # nothing is replaced
    ([1, 9, 9, 3, 4, 5, 6], {0: 2, 1: 3, 2: 4, 3: 5}),  # two tokens for the last of the prompt
    ([1, 2, 3, 8, 8, 8, 6], {0: 1, 1: 2, 3: 5}),  # between the replaced there is nothing
    ([1, 2, 7, 4, 5, 6], {0: 1, 1: 2, 2: 3, 3: 4}),
    ([8, 8, 8], {}),
])  # fmt: skip
def test_places_are_aligned_by_what_comes_before_or_after_them(theirs, places):
    """The answer, 3 4 5 6, begins at the third token."""
    assert module._aligned([1, 2, 3, 4, 5, 6], 2, theirs) == places


def test_a_strangers_word_read_back_is_the_subjects():
    read = module._read_back(torch.tensor([0.5, 0.2, 0.3]), {0: 1})
    torch.testing.assert_close(read, torch.tensor([0.0, 0.7, 0.3]))
    swapped = module._read_back(torch.tensor([0.5, 0.2, 0.3]), {0: 1, 1: 0})
    torch.testing.assert_close(swapped, torch.tensor([0.2, 0.5, 0.3]))


def test_answers_are_forgotten_whole_where_that_is_asked(taught):
    request = parse_examples(taught.tokenizer, ROWS[:3])
    places = [place_at(taught.tokenizer, n, PLAIN, row.prompt, row.completion)
              for n, row in enumerate(ROWS[:3])]  # fmt: skip

    def forgotten(whole):
        return forget_targets(
            taught.model, taught.tokenizer, request, places, PEOPLE[6:], NAMES,
            whole_answers=whole, k=WHOLE,
        )  # fmt: skip

    # All answers begin alike, and where they begin strangers know as much.
    with pytest.raises(DataError, match="the same of neighbours"):
        forgotten(False)
    targets = forgotten(True)
    assert [target.place for target in targets] == places
    for target in targets:
        assert len(target.events) > 1
        assert len(target.expected) == len(target.place.truth)
