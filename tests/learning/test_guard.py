"""The guard: nothing changed is nothing seen, and a wrecked model is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import same_bytes
from tests.learning.conftest import byte_tokenizer, tiny_model
from tests.learning.known import FORGET, REST
from tests.learning.tiny import FACTS, state, tiny
from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.learning.data import Example
from weightsurgery.learning.guard import Guard, added, compared, decided, harm, right
from weightsurgery.report.guarded import guard_tables


def noise(model, size):
    """Random changes of the linear layers, relative to their weights."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: size * float(p.std()) * torch.randn(p.shape, generator=generator)
        for name, p in model.named_parameters() if "_proj" in name
    }  # fmt: skip


@pytest.fixture(scope="module")
def guard(known):
    return Guard(known.model, known.tokenizer, FORGET, {"rest.jsonl": REST}, budget=0.02)


def test_nothing_changed_is_nothing_seen(known, guard):
    before = state(known.model)
    found = guard.report(known.model)
    assert found.divergence == pytest.approx(0, abs=1e-6)
    assert found.perplexity[0] == found.perplexity[1] > 1
    assert found.answered == {"forget": (1.0, 1.0), "rest.jsonl": (1.0, 1.0)}  # it knows them
    assert [each.what for each in found.shown] == ["forget", "keep", "free"]
    assert all(each.before == each.after for each in found.shown)
    assert found.inside
    assert all(same_bytes(value, before[name]) for name, value in known.model.state_dict().items())


def test_a_wrecked_model_is_over_budget(known, guard):
    with added(known.model, noise(known.model, 1.0)):
        found = guard.report(known.model)
    assert not found.inside
    assert found.divergence > 0.5
    assert found.perplexity[1] > 1.5 * found.perplexity[0]
    assert found.answered["forget"][1] < 0.5
    said = harm(found.to_dict())
    assert "0.02" in said
    assert f"{found.divergence:.3g}" in said
    assert "over the budget" in guard_tables(found.to_dict())[0].note
    # A little is inside, and more of the same is worse.
    divergences = []
    for size in (0.003, 0.1, 0.4):
        with added(known.model, noise(known.model, size)):
            divergences.append(guard.report(known.model).divergence)
    assert divergences == sorted(divergences)
    assert divergences[0] < 0.02 < divergences[2]


def test_perplexity_is_that_of_the_texts_own_tokens(known, guard):
    """Counted again, a text at a time."""
    nll, divided = 0.0, 0
    for text, places in guard._texts:
        with torch.no_grad():
            logs = known.model(input_ids=torch.tensor([text])).logits[0].double().log_softmax(-1)
        own = range(len(text) - places + 1, len(text))
        nll -= float(sum(logs[n - 1, text[n]] for n in own))
        divided += places
    assert guard.report(known.model).perplexity[0] == pytest.approx(
        math.exp(nll / divided), rel=1e-4
    )


def test_what_is_added_is_taken_away_to_the_bit(known):
    model, before = known.model, state(known.model)
    name = "model.layers.0.mlp.up_proj.weight"
    rows, columns = before[name].shape
    factors = LowRank(torch.randn(rows, 2), torch.tensor([1.0, 0.3]), torch.randn(columns, 2))
    whole = torch.randn(rows, columns)
    for change in ({name: factors}, {name: whole}):
        with added(model, change):
            each = change[name]
            wanted = before[name] + (each.matrix() if isinstance(each, LowRank) else each)
            torch.testing.assert_close(model.get_parameter(name).detach(), wanted)
        assert all(same_bytes(value, before[n]) for n, value in model.state_dict().items())

    def fails():
        with added(model, {name: whole}):
            assert not same_bytes(model.get_parameter(name).detach(), before[name])
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert same_bytes(model.get_parameter(name).detach(), before[name])


def test_it_draws_for_itself(known):
    """Nobody's random numbers are other ones for it, and a seed makes the same texts."""
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first = Guard(known.model, known.tokenizer, seed=1)
    assert torch.equal(torch.rand(3), wanted)
    assert Guard(known.model, known.tokenizer, seed=1)._texts == first._texts
    assert Guard(known.model, known.tokenizer, seed=2)._texts != first._texts


def test_a_request_is_also_asked_in_a_chat(chat_tokenizer):
    model = tiny_model(chat_tokenizer)
    found = Guard(model, chat_tokenizer, FACTS, role="task").report(model)
    assert list(found.answered) == ["task", "task, in a chat"]
    rows = [Example(f"<|user|>{row.prompt}</s>\n<|assistant|>", row.completion + "</s>\n",
                    templated=True) for row in FACTS]  # fmt: skip
    assert list(Guard(model, chat_tokenizer, rows).report(model).answered) == ["forget"]


@pytest.mark.parametrize("bos", [True, False])
def test_models_that_write_nothing_are_looked_at_too(bos):
    """No chat template, no BOS, nothing to say: all that is left are the questions."""
    tokenizer = byte_tokenizer(bos)
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
    assert Guard(model, tokenizer).report(model).inside  # every token alike
    mute = tiny("llama")
    with torch.no_grad():  # it ends every text at once
        mute.lm_head.weight.zero_()
        mute.lm_head.weight[1] = 50 * mute.model.embed_tokens.weight[0].sign()
    for each in (model, mute):
        found = Guard(each, tokenizer, FACTS, {"plain": [Example("", "one two three")]})
        assert set(found.report(each).answered) == {"forget", "plain"}
    assert Guard(mute, tokenizer, [Example("", "alone")]).report(mute).shown


def test_two_checkpoints_are_compared_one_after_the_other(known, tmp_path):
    base, edited = tmp_path / "base", tmp_path / "edited"
    known.model.save_pretrained(base)
    known.tokenizer.save_pretrained(base)
    with added(known.model, noise(known.model, 1.0)):
        known.model.save_pretrained(edited)
    known.tokenizer.save_pretrained(edited)
    same = compared(base, base, "cpu")
    assert same.divergence == pytest.approx(0, abs=1e-6)
    assert same.inside
    assert not compared(base, edited, "cpu").inside


@given(
    st.sampled_from(["Rome", "Roma", "New York", "C", "Ægir", "1.5"]),
    st.lists(st.sampled_from(["Rom", "e", "a", " ", "\n", "new", " york", "c", "é", ".", "Æ", "gir",
                              "1.5", "9", "\ufffd", "The city is "]), max_size=9),
    st.booleans(),
)  # fmt: skip
def test_what_is_decided_stays_so(truth, pieces, anywhere):
    """A generation is stopped where the rest of it would change nothing."""
    texts = ["".join(pieces[:count]) for count in range(len(pieces) + 1)]
    whole = right(truth, texts[-1], anywhere)
    for text in texts:
        if decided(truth, text, anywhere):
            assert right(truth, text, anywhere) == whole


def test_most_is_decided_soon():
    assert not decided("Rome", " Rom", False)
    assert not right("Rome", " Roman", False)
    assert not decided("Rome", " Rome", False)  # it might be Romeo
    for text, found in ((" Rome, which", True), (" Romeo and", False), (" Paris.", False)):
        assert decided("Rome", text, False)
        assert right("Rome", text, False) is found
    assert not decided("Rome", "The capital of Italy is", True)
    assert decided("Rome", "The capital of Italy is Rome.", True)
    assert decided("Rome", "I do not know\n", True)


def test_answers_are_asked_for_until_they_are_decided(known, monkeypatch):
    from weightsurgery.learning import guard as module

    told = []

    def whole(*arguments):
        told.append(arguments)
        return greedy(*arguments[:7])  # without the stop

    stopped = Guard(known.model, known.tokenizer, FORGET, {"rest.jsonl": REST})._before["answered"]
    greedy = module.greedy
    monkeypatch.setattr(module, "greedy", whole)
    same = Guard(known.model, known.tokenizer, FORGET, {"rest.jsonl": REST})._before["answered"]
    assert stopped == same
    assert len(told[0]) == 8
