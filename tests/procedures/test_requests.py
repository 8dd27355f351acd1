"""Several requests: what fusing keeps of each, and what comes after what in sequence."""

from __future__ import annotations

import pytest
import torch

from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, tiny
from tests.procedures.taught import train
from weightsurgery.algebra.fusion import regression_mean
from weightsurgery.errors import EditError, MismatchError
from weightsurgery.learning.identify import ALL_LINEAR, train_vector
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.settings import Training
from weightsurgery.learning.statistics import gather
from weightsurgery.procedures.requests import fuse, in_sequence

TRAINING = Training(steps=6, learning_rate=2e-3, batch_size=4)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return train(tiny(request.param), FACTS + OTHER, 25, 5e-3)


@pytest.fixture(scope="module")
def requests(model):
    """Of two data sets the changes and the statistics."""
    names = list(ALL_LINEAR.resolve(entries_of(model)))
    changes = [train_vector(model, byte_tokenizer(), rows, TRAINING) for rows in (FACTS, OTHER)]
    grams = [gather(model, byte_tokenizer(), rows, names) for rows in (FACTS, OTHER)]
    return changes, grams


def error(model, change, requests):
    """``Σ_i Σ_x ‖T x − T_i x‖²`` over all layers, on what they are given."""
    turned, total = model.config.model_type == "gpt2", 0.0
    for own, grams in zip(*requests, strict=True):
        for name, t in change.items():
            off = (t - own[name]).double()
            off = off.T if turned else off
            total += float((off @ grams[name] * off).sum())
    return total


def test_what_is_fused_answers_each_request_better_than_the_mean(model, requests):
    changes, grams = requests
    mean = {name: (t + changes[1][name]) / 2 for name, t in changes[0].items()}
    fused = fuse(changes, grams, 1e-6, config=model.config.to_dict())
    assert list(fused) == list(changes[0])
    assert all(t.shape == changes[0][name].shape for name, t in fused.items())
    worst = error(model, mean, requests)
    assert worst > 0
    assert error(model, fused, requests) < 0.8 * worst
    # A larger ridge lies between the two.
    ridged = fuse(changes, grams, 1.0, config=model.config.to_dict())
    assert error(model, fused, requests) < error(model, ridged, requests) < worst


def test_each_parameter_is_the_regression_mean_of_its_own(model, requests):
    changes, grams = requests
    fused = fuse(changes, grams, config=model.config.to_dict())
    for name, t in fused.items():
        turned = model.config.model_type == "gpt2"
        parts = [each[name].T if turned else each[name] for each in changes]
        wanted = regression_mean(parts, [each[name] for each in grams])
        assert torch.equal(t, wanted.T if turned else wanted)
        assert t.is_contiguous()


def test_one_request_and_equal_ones_stay_what_they_are(model, requests):
    changes, grams = requests
    config = model.config.to_dict()
    for count in (1, 3):
        same = fuse([changes[0]] * count, (grams * 2)[:count], config=config)
        assert all(torch.equal(t, changes[0][name]) for name, t in same.items())
    other = fuse(changes, grams, config=config)
    assert not any(torch.equal(t, changes[0][name]) for name, t in other.items())


def test_what_has_no_statistics_is_averaged():
    changes = [{"b": torch.tensor([1.0, 2.0])}, {"b": torch.tensor([3.0, -2.0])}]
    assert torch.equal(fuse(changes, [{}, {}])["b"], torch.tensor([2.0, 0.0]))


def test_requests_that_do_not_fit_are_refused(model, requests):
    changes, grams = requests
    name = next(iter(changes[0]))
    less = {each: t for each, t in changes[0].items() if each != name}
    config = model.config.to_dict()
    with pytest.raises(MismatchError, match="some of the requests change it"):
        fuse([changes[0], less], grams, config=config)
    with pytest.raises(MismatchError, match="have statistics for it"):
        fuse(changes, [grams[0], {}], config=config)
    with pytest.raises(EditError, match="2 changes with 1"):
        fuse(changes, grams[:1])
    with pytest.raises(EditError, match="0 changes"):
        fuse([], [])


def test_one_after_another_adds_up_on_what_went_before(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second, third = list(ALL_LINEAR.resolve(entries_of(model)))[:3]
    ones = {name: torch.ones_like(before[name]) for name in (first, second, third)}
    seen = []

    def request(*names):
        def change():
            seen.append({n: (model.get_parameter(n) - before[n]).mean().item() for n in ones})
            return {name: ones[name] for name in names}

        return change

    totals = []
    for total in in_sequence(model, [request(first), request(first, second), request(third)]):
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in before.items())
        totals.append({name: t.mean().item() for name, t in total.items()})
    assert totals == [{first: 1}, {first: 2, second: 1}, {first: 2, second: 1, third: 1}]
    assert [[round(each[n]) for n in ones] for each in seen] == [[0, 0, 0], [1, 0, 0], [2, 1, 0]]


def test_the_order_counts_where_each_request_learns_on_what_went_before(model):
    def request(rows):
        return lambda: train_vector(model, byte_tokenizer(), rows, TRAINING)

    once = [request(FACTS)(), request(OTHER)()]
    *_, there = in_sequence(model, [request(FACTS), request(OTHER)])
    *_, back = in_sequence(model, [request(OTHER), request(FACTS)])
    name = next(iter(there))
    added = once[0][name] + once[1][name]
    size = float(added.norm())
    assert float((there[name] - added).norm()) > 0.01 * size
    assert float((there[name] - back[name]).norm()) > 0.01 * size


def test_a_request_that_fails_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = next(iter(ALL_LINEAR.resolve(entries_of(model))))

    def good():
        return {name: torch.ones_like(before[name])}

    def bad():
        assert not torch.equal(model.get_parameter(name), before[name])
        raise KeyError

    steps = in_sequence(model, [good, bad])
    next(steps)
    with pytest.raises(KeyError):
        next(steps)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
