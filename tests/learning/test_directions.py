"""Where an adapter starts: what the request is given, beside what is to stay."""

from dataclasses import replace

import pytest
import torch

from tests.learning.known import FORGET, REST
from weightsurgery.algebra.contrast import WORK_BYTES
from weightsurgery.learning import directions as module
from weightsurgery.learning.activations import gathered, linear_inputs
from weightsurgery.learning.adapter import factors
from weightsurgery.learning.directions import directions, start, sums_bytes
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.gathering import gather
from weightsurgery.learning.identify import adapted
from weightsurgery.learning.training import isolated


@pytest.fixture(scope="module")
def material(known):
    with isolated():
        torch.manual_seed(0)
        settings = ByNeighbours(wordings=0, neighbours=8, texts=12, k=64)
        return gather(known.model, known.tokenizer, FORGET, [REST[:6]], (), settings)


def names(model):
    return [name for name, _ in model.named_parameters() if "down_proj" in name]


def rows(found):
    return {name: each.rows for name, each in found.items()}


def felt(known, rows, texts):
    """Energy of what each matrix's rows make of its inputs on texts, per input."""
    layers = {name: linear_inputs(known.model)[name] for name in rows}
    return {
        name: float(torch.einsum("ri,ij,rj->", rows[name].double(), gram, rows[name].double()))
        / count
        for own, gram, count in gathered(known.model, layers, texts, None, 4096, None)
        for name in own
    }


def test_they_feel_the_request_and_little_else(known, material):
    found = rows(directions(known.model, names(known.model), material, 4))
    assert found.keys() == set(names(known.model))
    random = {n: torch.rand(each.shape) * 2 - 1 for n, each in found.items()}
    asked = [row.tokens for row in material.taught]
    stay = [row.tokens for rows in material.kept.values() for row in rows]
    for name in found:
        shares = [
            felt(known, rows, asked)[name] / felt(known, rows, stay)[name]
            for rows in (random, found)
        ]
        assert shares[1] > 2 * shares[0], name


def test_an_adapter_starts_there_and_changes_nothing(known, material):
    model, every = known.model, names(known.model)
    found = rows(directions(model, every, material, 4))
    with adapted(model, every, 4, 4, 0) as with_adapter:
        own = {n: model.get_submodule(n.removesuffix(".weight")).lora_A["default"].weight
               for n in found}  # fmt: skip
        before = {name: each.clone() for name, each in own.items()}
        hidden = dict(found)
        first, *others = every
        hidden[first] = found[first].clone()
        hidden[first][2:] = 0  # nothing of the request there
        start(with_adapter, hidden)
        assert all(torch.equal(own[name], found[name]) for name in others)
        assert torch.equal(own[first][:2], found[first][:2])
        assert torch.equal(own[first][2:], before[first][2:])
        assert not any(float(each.S.abs().max()) for each in factors(with_adapter, found).values())
    model.requires_grad_(True)  # peft froze it


def test_texts_of_each_kind_count_alike(monkeypatch, known, material):
    """A set of thousands of tokens does not drown one of hundreds."""
    seen = []
    monkeypatch.setattr(module, "gathered", lambda _, every, texts, *more: seen.append(texts) or [])
    many = replace(material, kept={**material.kept, "keep": list(material.kept["keep"]) * 50})
    directions(known.model, names(known.model), many, 4, tokens=(60, 60))
    kept = seen[1]
    own = {kind: {row.tokens for row in rows} for kind, rows in many.kept.items()}
    counts = {kind: sum(len(text) for text in kept if text in texts) for kind, texts in own.items()}
    assert 0 < counts["keep"] <= 2 * 60  # some texts are of two kinds
    assert sum(len(row.tokens) for row in many.kept["keep"]) > 1000


def test_other_matrices_are_left_out_and_random_rows_stay_without_anything_to_keep(known, material):
    assert directions(known.model, ["model.norm.weight"], material, 4) == {}
    nothing = replace(material, kept=dict.fromkeys(material.kept, ()))
    assert directions(known.model, names(known.model), nothing, 4) == {}


def test_what_it_holds_is_bounded():
    small, wide = sums_bytes([64] * 4), sums_bytes([14336] * 32)
    assert small == 2 * 4 * 12 * 64**2 + WORK_BYTES * 64**2
    assert wide == 2 * (4 << 30) + WORK_BYTES * 14336**2 < 2 * 32 * 12 * 14336**2
    assert sums_bytes([30000]) == 2 * 12 * 30000**2 + WORK_BYTES * 30000**2  # one must fit
    assert sums_bytes([]) == 0


def test_matrices_that_run_on_one_side_alone_are_no_trouble(monkeypatch, known, material):
    """As experts do: one comes later on one side, one never does on the other."""
    every = names(known.model)
    whole = rows(directions(known.model, every, material, 4))

    def late(model, layers, texts, *more):
        each = list(gathered(model, layers, texts, *more))
        asked = texts == [row.tokens for row in material.taught]
        return iter(each[::-1] if asked else each[1:])

    monkeypatch.setattr(module, "gathered", late)
    found = rows(directions(known.model, every, material, 4))
    assert found.keys() == whole.keys()
    first, *others = every
    assert all(torch.equal(found[name], whole[name]) for name in others)
    assert not torch.equal(found[first], whole[first])
    assert torch.isfinite(found[first]).all()
