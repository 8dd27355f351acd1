"""What a model was taught, taken back from what it was before, in closed form."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from tests.learning.known import FORGET, REST, untaught
from tests.learning.test_forgetting import SETTINGS, TRAINING, forget, names, scores
from tests.learning.tiny import state, tiny
from weightsurgery.errors import EditError, NonFiniteError, UnsupportedCheckpointError
from weightsurgery.learning import untaught as module
from weightsurgery.learning.activations import gathered, linear_inputs
from weightsurgery.learning.directions import Directions, directions
from weightsurgery.learning.gathering import gather
from weightsurgery.learning.training import isolated

TAKING = replace(SETTINGS, take_back=True, rank=16)


@pytest.fixture(scope="module")
def before(known):
    return untaught(known)


@pytest.fixture(scope="module")
def taken(known, before):
    loaded = []

    def load():
        loaded.append(True)
        return before

    was = state(known.model)
    found = forget(known, TAKING, never_knew=load)
    assert loaded == [True]
    return found, was


def test_the_request_goes_and_the_rest_stays_without_a_step(known, before, taken):
    found, was = taken
    assert scores(replace(known, model=before), {}, FORGET, REST) == [0, 1]
    assert scores(known, {}, FORGET, REST) == [1, 1]  # before
    assert scores(known, found.change, FORGET, REST) == [0, 1]
    assert found.trained is None
    first, last = found.looks
    assert (first.step, first.known) == (0, 1.0)
    assert last == found.chosen
    assert last.known == 0
    assert 0 < last.language <= TRAINING.budget
    assert found.notes["strength"] > 0
    assert list(found.change) == names(known.model)
    assert all(0 < each.rank <= 16 for each in found.change.values())
    now = state(known.model)
    assert all(torch.equal(now[name], was[name]) for name in was)


def test_a_smaller_budget_takes_less(known, before, taken):
    little = replace(TAKING, training=replace(TRAINING, budget=2e-3))
    found = forget(known, little, never_knew=lambda: before)
    assert 0 < found.notes["strength"] < taken[0].notes["strength"]
    assert found.looks[1].language <= 2e-3


def test_nothing_is_taken_that_moves_other_language_by_more(known, before, taken):
    """What is measured besides has the last word, on the model as it would be."""
    strongest, seen = taken[0].notes["strength"], []

    def language(model):
        now = state(model)
        moved = [float((now[name] - was).norm()) for name, was in taken[1].items()]
        seen.append(max(moved))
        return 0.0 if max(moved) < limit else 1.0

    limit = float("inf")
    assert forget(known, TAKING, never_knew=lambda: before, language=language).notes[
        "strength"
    ] == pytest.approx(strongest)
    limit = max(seen) / 2
    found = forget(known, TAKING, never_knew=lambda: before, language=language)
    assert 0 < found.notes["strength"] < 0.75 * strongest


@pytest.fixture(scope="module")
def material(known):
    with isolated():
        torch.manual_seed(0)
        settings = replace(SETTINGS, neighbours=8, texts=12)
        return gather(known.model, known.tokenizer, FORGET, [REST[:6]], (), settings, False)


def test_with_directions_enough_the_request_meets_what_it_did_before(known, before, material):
    """``(W + (W₀ − W) L A) x = W₀ x`` for its inputs, where the rest has all but nothing taken."""
    model, every = known.model, [name for name in names(known.model) if "down_proj" in name]
    texts = [row.tokens for row in material.taught]
    found = directions(model, every, material, 128, tokens=(10**6, 10**6))
    layers = {name: linear_inputs(model)[name] for name in every}
    grams = {
        name: gram / count
        for members, gram, count in gathered(model, layers, texts, None, 4096, None)
        for name in members
    }
    change = module._change(model, found, module._columns(model, before, found))
    for name, gram in grams.items():
        taught, untaught = (each.get_parameter(name).double() for each in (model, before))
        delta = change[name].matrix().double()

        def energy(matrix, gram=gram):
            return float(torch.einsum("ij,jk,ik->", matrix.detach(), gram, matrix.detach()))

        apart = energy(taught - untaught)
        assert apart > 0
        assert energy(taught + delta - untaught) < 1e-4 * apart, name


def test_it_is_turned_as_each_kind_of_layer_is():
    """Against NumPy's float64, for Linear and for Conv1D, which has its weight the other way."""
    torch.manual_seed(0)
    layers = {"a": torch.nn.Linear(6, 4, bias=False), "b": Conv1D(4, 6)}
    model = torch.nn.ModuleDict(layers)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data += torch.randn_like(parameter)
    found = {f"{name}.weight": Directions(torch.randn(2, 6), torch.randn(6, 2)) for name in layers}
    change = module._change(model, found, module._columns(model, other, found))
    for name, each in found.items():
        now, then = (m.get_parameter(name).detach().double().numpy() for m in (model, other))
        onto = (each.loadings.double() @ each.rows.double()).numpy()
        wanted = (then - now) @ onto if name == "a.weight" else onto.T @ (then - now)
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(change[name].matrix().numpy(), wanted, atol=1e-4)


def test_a_model_that_it_was_not_tuned_from_is_refused(known):
    config = copy.deepcopy(known.model.config)
    torch.manual_seed(5)
    stranger = type(known.model)(config)
    config.intermediate_size //= 2
    smaller = type(known.model)(config)
    for other, said in ((stranger, "differ from"), (smaller, "has shape"), (None, "no model")):
        load = None if other is None else lambda other=other: other
        with pytest.raises(EditError, match=said) as refused:
            forget(known, TAKING, never_knew=load)
        assert "--never-knew" in refused.value.remedy or "--steps" in refused.value.remedy


def test_what_has_no_inputs_of_its_own_is_refused(known):
    """Experts that are stacked in memory: left out without a word, they would know it all still."""
    experts, stacked = tiny("mixtral"), "model.layers.0.mlp.experts.down_proj"
    assert experts.get_parameter(stacked).ndim == 3
    with pytest.raises(UnsupportedCheckpointError, match=r"down_proj.*no linear layer") as refused:
        module.before_it_was_taught(experts, [stacked], lambda: experts)
    assert "--exclude '*experts*'" in refused.value.remedy
    attention = "model.layers.0.self_attn.q_proj.weight"
    assert module.before_it_was_taught(experts, [attention], lambda: experts) is experts


def test_numbers_that_are_none_are_named(known, before):
    broken, name = copy.deepcopy(before), "model.layers.1.mlp.up_proj.weight"
    broken.get_parameter(name).data[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match=name.replace(".", r"\.")):
        forget(known, TAKING, never_knew=lambda: broken)
