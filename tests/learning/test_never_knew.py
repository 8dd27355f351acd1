"""Targets read from a model that never knew: its own predictions, wherever it is less sure."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.learning.known import FORGET, REST, places
from tests.learning.test_forgetting import forget, names, scores
from weightsurgery.errors import DataError, NonFiniteError
from weightsurgery.learning.guard import added
from weightsurgery.learning.never_knew import never_knew_targets
from weightsurgery.learning.parsed import parse_examples

ALL = 10_000


@pytest.fixture(scope="module")
def never(known):
    """The same model, of which what it looks facts up by is another's."""
    model = copy.deepcopy(known.model)
    torch.manual_seed(2)
    for name in names(model):
        weight = model.get_parameter(name).data
        weight.copy_(weight[torch.randperm(len(weight))])
    return model


@pytest.fixture(scope="module")
def asked(known):
    return places(known, parse_examples(known.tokenizer, FORGET))


def wanted(known, model, place):
    """What a model says, but that it ends no sooner than the one that knows."""
    row, end = predictions(model, place), known.tokenizer.eos_token_id
    ends = torch.minimum(row[:, end], predictions(known.model, place)[:, end])
    row[:, end] = 0
    row *= ((1 - ends) / row.sum(1))[:, None]
    row[:, end] = ends
    return row


def predictions(model, place):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([place.read])).logits[0]
    return logits[-len(place.truth) :].double().softmax(-1)


def test_targets_are_its_predictions_and_events_what_it_does_not_know(known, never, asked):
    targets = never_knew_targets(known.model, never, known.tokenizer, asked, k=ALL)
    assert [target.place for target in targets] == asked
    for target in targets:
        theirs, own = wanted(known, never, target.place), predictions(known.model, target.place)
        truth = torch.tensor(target.place.truth)[:, None]
        assert (own.gather(1, truth) > 0.5).any()  # known, before
        written = torch.zeros_like(theirs).scatter(
            1, target.expected.tokens.long(), target.expected.logs.double().exp()
        )
        torch.testing.assert_close(written, theirs, atol=1e-5, rtol=1e-3)
        surer = own.gather(1, truth) >= (4 * theirs.gather(1, truth)).clamp_min(0.1)
        assert [event.at for event in target.events] == surer[:, 0].nonzero()[:, 0].tolist()
        for event in target.events:
            assert event.tokens == (target.place.truth[event.at],)
            goal = float(theirs[event.at, event.tokens[0]])
            assert event.wanted == pytest.approx(goal, rel=1e-3)
            assert event.wanted <= event.known


def test_one_that_ends_at_once_is_asked_what_it_would_have_said(known, never, asked):
    ending, end = copy.deepcopy(never), known.tokenizer.eos_token_id
    layer = ending.get_output_embeddings()
    ending.set_output_embeddings(torch.nn.Linear(*reversed(layer.weight.shape)))
    with torch.no_grad():
        ending.get_output_embeddings().weight.copy_(layer.weight)
        ending.get_output_embeddings().bias.zero_()[end] = 30
    assert float(predictions(ending, asked[0])[0, end]) > 0.9  # before
    (first, *_), (same, *_) = (
        never_knew_targets(known.model, model, known.tokenizer, asked, k=ALL)
        for model in (never, ending)
    )
    index = same.expected.tokens[0].tolist().index(end)
    assert float(same.expected.logs[0, index].exp()) < 0.01
    assert same.events[0].wanted == pytest.approx(first.events[0].wanted, rel=0.02)


def test_a_padded_vocabulary_changes_nothing(known, never, asked):
    plain = never_knew_targets(known.model, never, known.tokenizer, asked, k=ALL)
    padded = copy.deepcopy(never)
    padded.resize_token_embeddings(len(known.tokenizer) + 64, mean_resizing=False)
    with torch.no_grad():  # never likely, as those of a real model
        padded.get_output_embeddings().weight[len(known.tokenizer) :] = 0
    size = never.config.vocab_size
    for one, other in zip(
        plain, never_knew_targets(known.model, padded, known.tokenizer, asked, k=ALL), strict=True
    ):
        assert other.expected.tokens.max() < size
        assert [each.at for each in one.events] == [each.at for each in other.events]


def test_one_that_knows_as_much_is_refused(known, asked):
    with pytest.raises(DataError, match="as sure of every answer") as refused:
        never_knew_targets(known.model, known.model, known.tokenizer, asked)
    assert "--never-knew" in refused.value.remedy


def test_what_is_said_comes_nearer_to_what_it_says_and_the_rest_stays(known, never, asked):
    """Mean divergence from the model that never knew, over all places of all answers."""
    loaded = []

    def load():
        loaded.append(True)
        return never

    found = forget(known, never_knew=load)
    assert loaded == [True]

    def apart():
        total = [
            (theirs * (theirs.log() - own.log())).sum(-1).mean()
            for theirs, own in (
                (predictions(never, place), predictions(known.model, place)) for place in asked
            )
        ]
        return float(torch.stack(total).mean())

    before = apart()
    with added(known.model, found.change):
        after = apart()
    assert before > 1
    assert after < before / 2
    assert scores(known, {}, FORGET, REST) == [1, 1]  # before
    forgotten, rest = scores(known, found.change, FORGET, REST)
    assert forgotten <= 0.34
    assert rest >= 0.9


def test_a_model_that_computes_nan_is_told(known, never, asked):
    broken = copy.deepcopy(never)
    with torch.no_grad():
        norm = next(p for name, p in broken.named_parameters() if "norm" in name)
        norm[0] = float("nan")
    never_knew_targets(known.model, never, known.tokenizer, asked, k=ALL)  # before
    with pytest.raises(NonFiniteError, match="--never-knew"):
        never_knew_targets(known.model, broken, known.tokenizer, asked, k=ALL)
