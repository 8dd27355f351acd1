"""The published recipe for λ: what it chooses, and that it leaves the model alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.learning.tiny import FACTS, OTHER, byte_tokenizer
from weightsurgery.errors import DataError, EditError
from weightsurgery.learning.data import Example
from weightsurgery.learning.exact import exact_match
from weightsurgery.learning.identify import ALL_LINEAR
from weightsurgery.learning.models import load_model
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.merging import Line, find_line
from weightsurgery.unlearning.methods.rounds import _KnownBefore
from weightsurgery.unlearning.methods.task_vector import TaskVectorNegation
from weightsurgery.unlearning.scale_choice import (
    SCALES,
    SHARE,
    choose_scale,
    find_scale,
    merge,
    with_change,
)
from weightsurgery.unlearning.system import ChangeRequest


@pytest.fixture(scope="module")
def model(taught):
    return load_model(taught.base)[0]


@pytest.fixture(scope="module")
def request_(model):
    return ChangeRequest(
        model, byte_tokenizer(), tuple(ALL_LINEAR.resolve(entries_of(model))), FACTS, OTHER,
        training=Training(steps=6, learning_rate=2e-3, batch_size=8),
    )  # fmt: skip


@pytest.fixture(scope="module")
def line(request_):
    return find_line(TaskVectorNegation, request_)


def test_the_grid_is_the_published_one():
    assert np.allclose(SCALES, np.linspace(0, 1, 21))
    assert SHARE == 0.95


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({0.0: (1.0, 1.0), 0.5: (0.5, 0.96), 1.0: (0.1, 0.94)}, 0.5),  # the lowest that holds
        ({0.0: (1.0, 1.0), 0.5: (0.5, 0.95), 1.0: (0.1, 0.5)}, 0.5),  # the bound itself holds
        ({0.5: (0.4, 1.0), 1.0: (0.4, 1.0)}, 0.5),  # of equal ones the smaller
        ({1.0: (0.4, 1.0), 0.5: (0.4, 1.0)}, 0.5),
        ({0.0: (1.0, 1.0), 0.5: (0.2, 0.1)}, 0.0),  # nothing holds but doing nothing
        ({0.5: (0.2, 0.1)}, None),
        ({0.5: (0.2, 1.2)}, 0.5),  # a control may rise
    ],
)
def test_the_choice(scores, chosen):
    assert choose_scale(scores, (1.0, 1.0)) == chosen


def test_every_control_must_hold_its_own_share():
    scores = {0.5: (0.5, 0.9, 0.48), 1.0: (0.1, 0.9, 0.47)}
    assert choose_scale(scores, (1.0, 0.9, 0.5)) == 0.5
    assert choose_scale(scores, (1.0, 0.9, 0.4)) == 1.0
    assert choose_scale(scores, (1.0, 0.9, 0.5), share=0.9) == 1.0


def test_the_recipe_finds_what_trying_all_finds(model, line):
    tokenizer, before = byte_tokenizer(), {k: v.clone() for k, v in model.state_dict().items()}
    wide = tuple(4 * scale for scale in SCALES)
    target, control = [], []
    for scale in wide:
        with with_change(model, line.at(scale)):
            target.append(exact_match(model, tokenizer, FACTS))
            control.append(exact_match(model, tokenizer, OTHER))
    assert target[0] == control[0] == 1.0
    assert min(control) < 0.95 < max(control)  # the bound decides
    holding = [i for i, value in enumerate(control) if value >= 0.95]
    best = min(holding, key=lambda i: (target[i], wide[i]))
    found = find_scale(line, model, tokenizer, FACTS, [OTHER], scales=wide)
    assert best > 0
    assert (found.scale, found.target, found.controls) == (
        wide[best],
        target[best],
        (control[best],),
    )
    assert found.before == (1.0, 1.0)
    assert found.tried == wide
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.fixture
def going_on(model):
    """The same, but where it ended it says an exclamation mark and goes on, as of text alone."""
    other = copy.deepcopy(model)
    tokenizer = byte_tokenizer()
    (stop,) = tokenizer("!", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        head = other.get_output_embeddings().weight
        head[[stop, tokenizer.eos_token_id]] = head[[tokenizer.eos_token_id, stop]]
    return other


def test_a_base_that_goes_on_after_its_answers_is_tuned_as_one_that_ends(model, going_on, line):
    tokenizer = byte_tokenizer()
    assert exact_match(going_on, tokenizer, OTHER) == 0
    wide = tuple(8 * scale for scale in SCALES[::2])
    ends, goes = (
        find_scale(line, each, tokenizer, FACTS, [OTHER], scales=wide) for each in (model, going_on)
    )
    assert goes.before == (1.0, 1.0)
    assert goes == ends
    assert 0 < goes.scale < wide[-1]


def test_a_base_that_goes_on_can_be_watched(going_on):
    watch = _KnownBefore(FACTS, {"keep": OTHER})
    watch.begin(going_on, byte_tokenizer(), ["model.norm.weight"])
    assert watch.history == [{"": 1.0, "keep": 1.0}]
    lost = _KnownBefore(FACTS, {"keep": [Example("Is this known?", " No")]})
    with pytest.raises(DataError, match="answers none of it"):
        lost.begin(going_on, byte_tokenizer(), [])


def test_a_change_is_inside_and_then_gone_even_after_an_error(model, line):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    change = line.at(0.3)
    name = next(iter(change))

    def broken():
        with with_change(model, change):
            assert torch.equal(model.get_parameter(name), before[name] + change[name])
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_a_merged_change_says_how_it_was_found(request_, line):
    change, notes = merge(TaskVectorNegation, request_)
    assert notes["scale"] in SCALES
    assert notes["scales_tried"] == 21
    assert notes["forget"]["after"] < notes["forget"]["before"]
    assert notes["keep"]["after"] >= 0.95 * notes["keep"]["before"]
    wanted = line.at(notes["scale"])
    assert all(torch.equal(change[name], t) for name, t in wanted.items())
    fixed, notes = merge(TaskVectorNegation, replace(request_, keep=(), settings={"scale": 1.5}))
    assert notes == {"scale": 1.5}
    assert all(torch.equal(fixed[name], t) for name, t in line.at(1.5).items())
    lame = replace(request_, training=replace(request_.training, learning_rate=1e-9))
    with pytest.raises(EditError, match="no scale up to 1 forgets anything"):
        merge(TaskVectorNegation, lame)
    with pytest.raises(EditError, match="without a scale"):
        merge(TaskVectorNegation, replace(request_, keep=()))


def test_without_anything_to_choose_by_it_refuses(model, line):
    tokenizer = byte_tokenizer()
    with pytest.raises(EditError, match="no examples to choose"):
        find_scale(line, model, tokenizer, FACTS, [])
    with pytest.raises(EditError, match="no examples to choose"):
        find_scale(line, model, tokenizer, FACTS, [OTHER, []])
    with pytest.raises(EditError, match="scores 0"):
        find_scale(line, model, tokenizer, FACTS, [OTHER], score=lambda *_: 0.0)
    breaking = Line(line.direction, {n: 9 * torch.ones_like(t) for n, t in line.direction.items()})
    with pytest.raises(EditError, match="no scale leaves 95%"):
        find_scale(breaking, model, tokenizer, FACTS, [OTHER], scales=(0.0, 0.5))
