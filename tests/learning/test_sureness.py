"""As sure of what is said instead as of what is said about strangers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.learning.known import FORGET, REST, places, untaught
from tests.learning.test_forgetting import TRAINING, forget, names, scores
from tests.learning.test_untaught import TAKING
from tests.learning.tiny import state
from weightsurgery.learning import gathering
from weightsurgery.learning import sureness as module
from weightsurgery.learning.data import Example
from weightsurgery.learning.events import Event
from weightsurgery.learning.gathering import gather
from weightsurgery.learning.guard import added
from weightsurgery.learning.looks import Looks
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.renamed import Renamed
from weightsurgery.learning.sureness import RANK, SURE, entropy_of_strangers, made_sure
from weightsurgery.learning.training import isolated
from weightsurgery.learning.untaught import take_back
from weightsurgery.learning.values import restored

# Six facts weigh less beside the rest than forty answers do.
SETTINGS = replace(
    SURE, steps=24, learning_rate=4e-3, keep_weight=1.0, language_weight=1.0, every=8,
    budget=TRAINING.budget,
)  # fmt: skip


@pytest.fixture(scope="module")
def edited(known, tmp_path_factory):
    """What was taken back, and what it was taken back by."""
    model, before = known.model, untaught(known)
    with isolated(), restored(model):
        torch.manual_seed(0)
        settings = replace(TAKING, neighbours=8, texts=12)
        material = gather(
            model, known.tokenizer, FORGET, [REST[:6]], (), settings, never_knew=lambda: before
        )
        looks = Looks(tmp_path_factory.mktemp("looks"), material, TRAINING.budget, 0)
        change, _ = take_back(model, before, names(model), material, 16, looks)
    return material, change


def surer(known, edited, tmp_path, share=0.3, **options):
    """Trained, with strangers of whom the model would be so much surer than it is."""
    material, change = edited
    undecided = entropy(known, change, material)
    material = replace(material, notes={"strangers_entropy": share * undecided})
    looks = Looks(tmp_path / "looks", material, SETTINGS.budget, 0)
    with isolated(), restored(known.model):
        return looks, made_sure(
            known.model, known.tokenizer, names(known.model), material, change, SETTINGS, looks,
            tmp_path / "sure", **options,
        )  # fmt: skip


def entropy(known, change, material):
    """Of the predictions where it is to forget, float64."""
    found = []
    with added(known.model, change), torch.no_grad():
        for row in material.taught:
            logits = known.model(input_ids=torch.tensor([list(row.tokens)])).logits[0].double()
            logs = logits[-(len(row.expected) - row.held) :].log_softmax(-1)
            found += (-(logs.exp() * logs).sum(-1)).tolist()
    return sum(found) / len(found)


def test_of_strangers_it_is_the_mean_over_answers_with_other_names(known):
    request = parse_examples(known.tokenizer, FORGET)
    asked = places(known, request)
    renamed = Renamed(known.tokenizer, request, random.Random("sure 3"))
    wanted = []
    for place in asked:
        answer = known.tokenizer.decode(list(place.truth))
        read, count, _ = renamed.read(request[place.number], place, answer)
        with torch.no_grad():
            logits = known.model(input_ids=torch.tensor([read[:-1]])).logits[0, -count:]
        logs = logits.double().log_softmax(-1)
        wanted += (-(logs.exp() * logs).sum(-1)).tolist()
    found = entropy_of_strangers(known.model, known.tokenizer, request, asked, seed=3)
    assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    assert found > 0.01


def test_a_request_that_names_nobody_has_no_strangers(known, edited, tmp_path):
    rows = [Example("is there a colour", " grey"), Example("what is it like", " plain")]
    request = parse_examples(known.tokenizer, rows)
    asked = [replace(each, subject="") for each in request]
    there = places(known, asked)
    assert there
    assert entropy_of_strangers(known.model, known.tokenizer, asked, there) is None
    material, change = edited
    nobody = replace(material, notes={"strangers_entropy": None})
    looks = Looks(tmp_path / "looks", nobody, SETTINGS.budget, 0)
    found = made_sure(
        known.model, known.tokenizer, names(known.model), nobody, change, SETTINGS, looks, tmp_path
    )
    assert (found.change, found.trained, found.notes) == (change, None, {})


def test_the_exponent_gives_the_entropy(known, edited):
    material, change = edited
    before = entropy(known, change, material)
    with added(known.model, change):
        means = module._entropies(known.model, known.tokenizer, material, module._EXPONENTS, None)
        assert means[0] == pytest.approx(before, rel=1e-4)
        assert means == sorted(means, reverse=True)
        wanted = (means[4] + 2 * means[5]) / 3
        exponent = module._exponent(means, wanted)
        assert module._EXPONENTS[4] < exponent < module._EXPONENTS[5]
        (found,) = module._entropies(
            known.model, known.tokenizer, material, torch.tensor([exponent]), None
        )
    assert found == pytest.approx(wanted, rel=0.05)
    assert module._exponent(means, 2 * means[0]) == 1
    assert module._exponent(means, 0.0) == pytest.approx(float(module._EXPONENTS[-1]))


def test_targets_are_sharper_and_have_no_more_of_the_truth_than_they_are_to(known, edited):
    """``softmax(β z)`` in float64, the truth brought down, the rest grown by one factor."""
    material, change = edited
    least = [
        tuple(replace(event, wanted=event.wanted / 1e3) for event in row) for row in material.events
    ]
    for events in (material.events, least):
        given = replace(material, events=events)
        with added(known.model, change), torch.no_grad():
            found = module._sharpened(known.model, known.tokenizer, given, 1.7, None)
            brought = 0
            for row, now, was, event in zip(
                material.taught, found.taught, events, found.events, strict=True
            ):
                logits = known.model(input_ids=torch.tensor([list(row.tokens)])).logits[0].double()
                wanted = (1.7 * logits[-(len(row.expected) - row.held) :]).softmax(-1)
                ((asked,), (told,)) = was, event
                truth = float(wanted[asked.at, list(asked.tokens)].sum())
                if truth > asked.wanted:
                    brought += 1
                    wanted[asked.at] *= (1 - asked.wanted) / (1 - truth)
                    wanted[asked.at, list(asked.tokens)] *= (
                        asked.wanted / wanted[asked.at, list(asked.tokens)].sum()
                    )
                assert told.wanted == pytest.approx(min(truth, asked.wanted), rel=1e-3)
                own = now.expected[now.held :]
                torch.testing.assert_close(
                    own.logs.exp().double(),
                    wanted.gather(1, own.tokens.long()),
                    atol=1e-5,
                    rtol=1e-3,
                )
                assert torch.equal(now.expected.logs[: now.held], row.expected.logs[: row.held])
        assert events is not least or brought > len(events) // 2


def test_a_certain_truth_is_brought_down_to_a_distribution():
    """Where all of the rest rounds to nothing beside it, too."""
    logits = torch.tensor([40.0, 0.0, 1.0, -3.0])
    sharp = logits.softmax(-1)
    assert float(sharp[0]) == 1  # before
    module._no_likelier(sharp, logits, Event(0, (0,), 0.01))
    wanted = torch.cat((torch.tensor([0.01]), 0.99 * logits[1:].softmax(-1)))
    torch.testing.assert_close(sharp, wanted)
    module._no_likelier(sharp, logits, Event(0, (2, 3), 0.9))  # is less
    torch.testing.assert_close(sharp, wanted)


def test_it_is_surer_and_what_was_forgotten_stays_forgotten(known, edited, tmp_path):
    material, change = edited
    was, before = state(known.model), entropy(known, change, material)
    assert scores(known, change, FORGET)[0] < 0.5 < scores(known, {}, FORGET)[0]
    looks, found = surer(known, edited, tmp_path)
    notes = found.notes
    assert notes["before"] == pytest.approx(before, rel=1e-2)
    assert notes["strangers"] == pytest.approx(0.3 * before, rel=1e-2)
    assert notes["beta"] > 1.1
    assert notes["share"] == 1
    after = entropy(known, found.change, material)
    assert notes["after"] == pytest.approx(after, rel=1e-2)
    assert after < 0.8 * before
    forgotten, rest = scores(known, found.change, FORGET, REST)
    assert forgotten <= scores(known, change, FORGET)[0]
    assert rest >= 0.9
    assert looks.history[-1].step == found.trained.steps == SETTINGS.steps
    assert looks.history[-1].inside(SETTINGS.budget)
    now = state(known.model)
    assert all(torch.equal(now[name], was[name]) for name in was)


def test_the_first_two_thirds_are_as_they_were(known, edited, tmp_path):
    _, change = edited
    _, found = surer(known, edited, tmp_path)
    order = names(known.model)
    late = order[2 * len(order) // 3 :]
    assert set(found.change) == set(change)
    for name, each in change.items():
        now = found.change[name]
        if name in late:
            assert not torch.allclose(now.matrix(), each.matrix())
            assert now.rank <= each.rank + RANK
        else:
            assert torch.equal(now.matrix(), each.matrix())


def test_one_that_is_sure_enough_is_left(known, edited, tmp_path):
    _, change = edited
    looks, found = surer(known, edited, tmp_path, share=0.99)
    assert found.trained is None
    assert found.notes["beta"] < 1.1
    assert found.change == change
    assert looks.history == []


@pytest.mark.parametrize("room", [0, 1])
def test_of_what_was_trained_as_much_as_the_budget_has_room_for(known, edited, tmp_path, room):
    _, change = edited
    asked = []

    def language(model):
        asked.append(state(model))
        return 0.0 if room and len(asked) > 2 else 1.0

    _, found = surer(known, edited, tmp_path, language=language)
    assert found.notes["share"] == (0.5 if room else 0)
    assert len(asked) == (3 if room else 4)
    if not room:
        assert found.change == change
        assert found.trained is None
    name = names(known.model)[-1]
    weights = [each[name] - state(known.model)[name] for each in asked]
    apart = [float((each - change[name].matrix()).norm()) for each in weights]
    assert apart[0] > 0
    for share, each in zip((1, 0.75, 0.5, 0.25), apart, strict=False):
        assert each == pytest.approx(share * apart[0], rel=1e-2)


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(known, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "entropy_of_strangers", lambda *_, **__: 0.05)
    settings, before = replace(TAKING, training=SETTINGS), untaught(known)

    def run(name, progress=None):
        return forget(
            known, settings, never_knew=lambda: before, workspace=tmp_path / name, progress=progress
        )

    whole, steps = run("whole"), []
    assert whole.trained.steps == SETTINGS.steps  # before

    def stop(text, done, _):
        if text.startswith("sureness") and done > 12:
            raise KeyboardInterrupt

    def count(text, done, _):
        steps.extend([done] if text.startswith("sureness") else [])

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    again = run("stopped", count)
    assert min(steps) > 8  # from the point that was saved
    assert again.looks == whole.looks
    for name, each in whole.change.items():
        assert torch.equal(each.matrix(), again.change[name].matrix()), name
