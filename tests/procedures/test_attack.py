"""Attacks on a checkpoint: what comes back, what does not, and on disk nothing changes."""

import copy
import random
import sys

import pytest
import torch

from tests.conftest import snapshot
from tests.lab.test_world import MINIATURE
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, save, tiny, write
from weightsurgery.algebra.quantise import int_rtn
from weightsurgery.errors import (
    DataError,
    EditError,
    NonFiniteError,
    SelectionError,
    WeightSurgeryError,
)
from weightsurgery.lab.world.facts import make_facts
from weightsurgery.learning.attacks import quantised, relearn
from weightsurgery.learning.data import Collator, Example, encode_all
from weightsurgery.learning.exact import exact_match
from weightsurgery.learning.subjects import part_of, subjects
from weightsurgery.procedures.attack import attack_quantize, attack_relearn

ONLY = {"metrics": ["exact_match"], "device": "cpu", "resamples": 200}


def taught(examples):
    model = tiny("llama")
    relearn(model, byte_tokenizer(), examples, steps=100, learning_rate=1e-2)
    assert exact_match(model, byte_tokenizer(), examples) == 1
    return model


def masked(model):
    """The model with one row of its head turned to where answers begin: it says "~" instead."""
    model = copy.deepcopy(model)
    prompts = [byte_tokenizer()(each.prompt)["input_ids"] for each in FACTS]
    with torch.no_grad():
        hidden = model.model(torch.tensor(prompts)).last_hidden_state[:, -1].mean(0)
        (row,) = byte_tokenizer()("~", add_special_tokens=False)["input_ids"]
        most = (model.lm_head.weight @ hidden).max()
        model.lm_head.weight[row] = 1.5 * most * hidden / hidden.square().sum()
    return model


def nudged(model):
    """Its weights on a grid of 4 bits, and the same off by less than half a step."""
    on_grid = copy.deepcopy(model)
    with quantised(on_grid, "int4") as names:
        weights = {name: on_grid.get_submodule(name).weight.data for name in names}
    with torch.no_grad():
        for name, weight in weights.items():
            on_grid.get_submodule(name).weight.copy_(int_rtn(weight))
    edited = copy.deepcopy(on_grid)
    edited(**Collator(2)(encode_all(byte_tokenizer(), FACTS))).loss.backward()
    with torch.no_grad():
        for name in names:
            weight = edited.get_submodule(name).weight
            # A group is a row here; its largest weight sets the step, and stays.
            step = weight.abs().amax(1, keepdim=True) / 7
            inner = weight.abs() < weight.abs().amax(1, keepdim=True)
            weight += 0.45 * step * weight.grad.sign() * inner
    edited.zero_grad(set_to_none=True)
    return on_grid, edited


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("attacks")
    knows, never = taught(FACTS + OTHER), taught(OTHER)
    assert exact_match(never, byte_tokenizer(), FACTS) == 0
    on_grid, edited = nudged(knows)
    for name, model in (
        ("knows", knows), ("masked", masked(knows)), ("never", masked(never)),
        ("on-grid", on_grid), ("nudged", edited),
    ):  # fmt: skip
        save(model, root / name)
    write(root / "facts.jsonl", FACTS)
    write(root / "other.jsonl", OTHER)
    return root


# --- relearning ----------------------------------------------------------------------------------


def test_a_mask_falls_where_nothing_is_learned_anew(place):
    """Half the facts bring back the other half of a masked model, not of one that never knew."""
    before = snapshot(place)
    found = attack_relearn(
        place / "masked", [place / "facts.jsonl"], [place / "other.jsonl"], place / "never",
        steps=30, learning_rate=1e-3, **ONLY,
    )  # fmt: skip
    assert snapshot(place) == before
    trained, held, keep = found.sets
    assert [each.part for each in found.sets] == ["trained on", "held out", ""]
    assert (trained.examples, held.examples, keep.examples) == (4, 4, 8)
    assert [each.role for each in found.sets] == ["forget", "forget", "keep"]

    def scores(model):
        return (model.before["exact_match"].value, model.after["relearned"]["exact_match"].value)

    # Masked and ignorant look alike before; after, one of them has what it was not taught.
    assert scores(held.checkpoint)[0] == scores(held.control)[0] == 0
    assert scores(trained.checkpoint)[1] == 1
    assert scores(held.checkpoint)[1] == 1
    assert scores(held.control)[1] == 0
    beyond = held.beyond["relearned"]["exact_match"]
    assert beyond.value == held.checkpoint.change["relearned"]["exact_match"].value
    assert beyond.interval[0] > 0
    assert held.control.change["relearned"]["exact_match"].value == 0


def test_looks_are_a_curve_and_change_nothing(place):
    def attacked(steps, **more):
        return attack_relearn(
            place / "masked", [place / "facts.jsonl"], steps=steps, learning_rate=1e-3,
            **{**ONLY, "metrics": ["exact_match", "nll"]}, **more,
        )  # fmt: skip

    plain, found = attacked(30), attacked(30, looks=[30, 15, 5, 15])
    assert plain.attacks == ("relearned",)
    assert found.attacks == ("step 5", "step 15", "relearned")
    assert found.settings == {**plain.settings, "looks": [5, 15]}
    for once, curve in zip(plain.sets, found.sets, strict=True):
        assert curve.checkpoint.before == once.checkpoint.before
        assert curve.checkpoint.after["relearned"] == once.checkpoint.after["relearned"]
    held = found.sets[1].checkpoint.after
    losses = [held[name]["nll"].value for name in found.attacks]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]
    early = attacked(5).sets[1].checkpoint.after["relearned"]["nll"].value
    assert losses[0] == pytest.approx(early)
    for look in (0, 31):
        with pytest.raises(EditError, match=f"a look after step {look} of 30"):
            attacked(30, looks=[look])


def test_the_attacker_may_bring_data(place, tmp_path):
    """Some of the facts bring back the others, where they were known."""
    known = write(tmp_path / "known.jsonl", FACTS[:4])
    asked = write(tmp_path / "asked.jsonl", FACTS[4:])

    def back(data):
        found = attack_relearn(
            place / "masked", [asked], [place / "other.jsonl"], place / "never", train=[data],
            steps=30, learning_rate=1e-3, **ONLY,
        )  # fmt: skip
        assert [(each.part, each.examples) for each in found.sets] == [("", 4), ("", 8)]
        assert found.settings["train"] == [str(data)]
        assert "fraction" not in found.settings
        models = (found.sets[0].checkpoint, found.sets[0].control)
        assert [each.before["exact_match"].value for each in models] == [0, 0]
        return found.trained_on, [each.after["relearned"]["exact_match"].value for each in models]

    trained, (masked, never) = back(known)
    assert trained == {"known": [1, 2, 3, 4]}
    assert masked >= 0.5
    assert never == 0
    trained, (_, never) = back(place / "other.jsonl")
    assert trained == {"other": [*range(1, 9)]}
    assert never == 0


def test_the_split_is_recorded_and_the_seeds(place):
    def attacked(**settings):
        return attack_relearn(
            place / "masked", [place / "facts.jsonl"], steps=1, **{**ONLY, **settings}
        )

    found = attacked()
    given = found.trained_on["facts"]
    assert given == [n + 1 for n in part_of([FACTS], 0.5)[0]]
    assert len(given) == 4
    assert found == attacked()
    assert found.settings == {
        "steps": 1, "learning_rate": 5e-4, "batch_size": 64, "fraction": 0.5,
    }  # fmt: skip
    assert attacked(seed=1).trained_on["facts"] != given
    assert len(attacked(fraction=0.25).trained_on["facts"]) == 2


def test_what_is_trained_on_is_what_is_said(place, monkeypatch):
    seen = []

    def spy(model, tokenizer, examples, *settings):
        assert {each.dtype for each in model.parameters()} == {torch.float32}
        seen.append((examples, settings))

    monkeypatch.setattr("weightsurgery.procedures.attack.relearn", spy)
    found = attack_relearn(
        place / "masked", [place / "facts.jsonl", place / "other.jsonl"], [], place / "never",
        steps=7, learning_rate=1e-4, batch_size=5, seed=3, fraction=0.3, **ONLY,
    )  # fmt: skip
    named = [FACTS[n - 1] for n in found.trained_on["facts"]]
    named += [OTHER[n - 1] for n in found.trained_on["other"]]
    assert seen == [(named, (7, 1e-4, 5, 3, None, None))] * 2
    assert len(named) == 5
    # Nothing was learned, so nothing came back.
    assert all(each.checkpoint.change["relearned"]["exact_match"].value == 0 for each in found.sets)


def test_parts_share_no_subject():
    """Held to the world's own word on whom its facts are about."""
    for task in ("authors", "capitals"):
        facts = make_facts(MINIATURE, 0)[task]
        rows = [Example(fact.prompt, fact.completion) for fact in facts]
        (part,) = part_of([rows], 0.5, seed=1)
        inside = {facts[n].entity for n in part}
        outside = {fact.entity for n, fact in enumerate(facts) if n not in set(part)}
        assert inside
        assert outside
        assert not inside & outside
        assert abs(len(inside) - len(outside)) <= 1
        # A random half would not do.
        drawn = random.Random(0).sample(range(len(facts)), len(facts) // 2)
        rest = {fact.entity for n, fact in enumerate(facts) if n not in drawn}
        assert task == "capitals" or {facts[n].entity for n in drawn} & rest


def test_parts_hold_over_several_sets():
    first, second = FACTS[:5], [Example(f"The size of {n} is", " big") for n in "defghi"]
    parts = part_of([first, second], 0.4, seed=2)
    rows = [first, second]
    asked = [{subjects(r)[n] for n in part} for r, part in zip(rows, parts, strict=True)]
    rest = [
        {each for n, each in enumerate(subjects(r)) if n not in part}
        for r, part in zip(rows, parts, strict=True)
    ]
    assert not (asked[0] | asked[1]) & (rest[0] | rest[1])
    assert len(asked[0] | asked[1]) == round(0.4 * 9)


def test_texts_are_their_own_subjects():
    texts = [Example("", "one text"), Example("", "another text")]
    assert subjects([*texts, Example("?!", " x")]) == [("one text",), ("another text",), ("?!",)]
    assert sorted(map(len, part_of([texts], 0.9))) == [1]


# --- quantisation --------------------------------------------------------------------------------


def test_rounding_undoes_a_change_smaller_than_half_a_step(place):
    before = snapshot(place)
    found = attack_quantize(
        place / "nudged", [place / "facts.jsonl"], [place / "other.jsonl"], place / "on-grid",
        methods=["int4", "int8", "int4"], **ONLY,
    )  # fmt: skip
    assert snapshot(place) == before
    assert found.attacks == ("int4", "int8")
    assert found.layers == 14
    facts, other = found.sets
    # Forgotten, and not at all any more: exactly what the model before the change says.
    assert facts.checkpoint.before["exact_match"].value == 0
    assert facts.checkpoint.after["int4"]["exact_match"].value == 1
    assert facts.checkpoint.change["int4"]["exact_match"].value == 1
    assert facts.control.before["exact_match"].value == 1
    assert facts.control.change["int4"]["exact_match"].value == 0
    assert facts.beyond["int4"]["exact_match"].value == 1
    # Finer steps hold the change.
    assert facts.checkpoint.after["int8"]["exact_match"].value == 0
    for each in found.sets:
        assert each.checkpoint.after["int4"] == each.control.before
    assert other.part == ""


# --- what is refused -----------------------------------------------------------------------------


def test_what_cannot_be_attacked_is_refused_before_a_model_is_loaded(place, monkeypatch):
    def never(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("weightsurgery.procedures.attack.load_model", never)
    facts, model = place / "facts.jsonl", place / "masked"
    with pytest.raises(AssertionError, match="a model was loaded"):
        attack_relearn(model, [facts])
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"batch_size": 0}):
        with pytest.raises(EditError, match="relearning for"):
            attack_relearn(model, [facts], **wrong)
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(DataError, match="a part of"):
            attack_relearn(model, [facts], fraction=fraction)
    with pytest.raises(EditError, match="int3"):
        attack_quantize(model, [facts], methods=["nf4", "int3"])
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional", raising=False)
    with pytest.raises(WeightSurgeryError, match="bitsandbytes cannot be loaded"):
        attack_quantize(model, [facts], methods=["nf4-bitsandbytes"])
    with pytest.raises(EditError, match="no way to quantise"):
        attack_quantize(model, [facts], methods=[])
    for attack in (attack_relearn, attack_quantize):
        with pytest.raises(DataError, match="no data to score"):
            attack(model, [])
        with pytest.raises(EditError, match="an attack on nothing"):
            attack(model, [], [facts])
        with pytest.raises(SelectionError, match="bleu"):
            attack(model, [facts], metrics=["bleu"])
        with pytest.raises(DataError, match="cannot be read"):
            attack(model, [facts], [place / "missing.jsonl"])
    one = write(place / "one.jsonl", FACTS[:1])
    with pytest.raises(DataError, match="one subject"):
        attack_relearn(model, [one])


def test_an_attack_that_breaks_the_model_says_so(place):
    with pytest.raises(NonFiniteError, match="after relearning"):
        attack_relearn(
            place / "masked", [place / "facts.jsonl"], steps=6, learning_rate=1e38, **ONLY
        )
