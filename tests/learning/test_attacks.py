"""Attacks: what relearning and rounding do to a model, and what they leave alone."""

import random
import sys

import numpy
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.conftest import same_bytes
from weightsurgery.algebra.quantise import int_rtn, nf4_rtn
from weightsurgery.errors import EditError, NonFiniteError, WeightSurgeryError
from weightsurgery.lab.world.model import make_tokenizer
from weightsurgery.learning.attacks import ROUNDINGS, quantised, relearn
from weightsurgery.learning.data import Example
from weightsurgery.learning.exact import exact_match

EXAMPLES = [
    Example(f"What does {who} like?", f" {what}")
    for who, what in zip("abcdefgh", ["tea", "sun", "sea", "ice"] * 2, strict=True)
]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer((row.prompt + row.completion for row in EXAMPLES), 300)


def llama(tokenizer, **changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=72, **SIZES, **changes
    )
    return LlamaForCausalLM(config).eval()


def state(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def changed(model, before):
    now = model.state_dict()
    assert set(now) == set(before)
    return {name for name, weight in before.items() if not same_bytes(weight, now[name])}


# --- relearning ----------------------------------------------------------------------------------


def test_relearning_teaches_its_examples(tokenizer, capfd):
    model = llama(tokenizer)
    assert exact_match(model, tokenizer, EXAMPLES) == 0
    before = state(model)
    capfd.readouterr()
    relearn(model, tokenizer, EXAMPLES, steps=40, learning_rate=1e-2)
    assert capfd.readouterr() == ("", "")
    assert not model.training
    assert changed(model, before) == set(before)
    assert exact_match(model, tokenizer, EXAMPLES) > 0.9


def test_relearning_depends_on_its_seed_alone(tokenizer):
    def learned(seed):
        model = llama(tokenizer)
        torch.manual_seed(seed + 7)
        relearn(model, tokenizer, EXAMPLES, 3, 1e-2, batch_size=3, seed=seed)
        return state(model)

    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    model, first = llama(tokenizer), learned(0)
    torch.set_rng_state(states[0])
    relearn(model, tokenizer, EXAMPLES, 3, 1e-2, batch_size=3)
    assert not changed(model, first)
    assert changed(model, learned(1))
    torch.set_rng_state(states[0])
    relearn(model, tokenizer, EXAMPLES, 1, 1e-2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]


def test_attacks_that_would_look_weak_are_refused(tokenizer):
    model = llama(tokenizer)
    before = state(model)
    for arguments in (([], 1), (EXAMPLES, 0), (EXAMPLES, 1, 0.0), (EXAMPLES, 1, 1e-3, 0)):
        with pytest.raises(EditError, match="relearning"):
            relearn(model, tokenizer, *arguments)
    assert not changed(model, before)
    with pytest.raises(EditError, match=r"bfloat16 .* rounding"):
        relearn(model.bfloat16(), tokenizer, EXAMPLES)


# --- quantisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ROUNDINGS)
def test_linear_weights_are_rounded_and_come_back(tokenizer, method, dtype):
    if method.endswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    model = llama(tokenizer).to(dtype)
    before, places = state(model), {n: p.data_ptr() for n, p in model.named_parameters()}
    tokens = torch.arange(10)[None]
    logits = model(tokens).logits
    with quantised(model, method) as names:
        assert len(names) == 2 * 7
        linear = {f"{name}.weight" for name in names}
        assert changed(model, before) == linear
        assert linear == {name for name in before if name.endswith("proj.weight")}
        for name in linear:
            rounded = ROUNDINGS[method](before[name]).to(dtype)
            assert same_bytes(model.state_dict()[name], rounded)
        assert not torch.equal(model(tokens).logits, logits)
    assert not changed(model, before)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == places
    assert torch.equal(model(tokens).logits, logits)


def test_weights_come_back_after_a_failure_and_after_training(tokenizer):
    model = llama(tokenizer)
    before = state(model)

    def fail():
        with quantised(model, "nf4"):
            relearn(model, tokenizer, EXAMPLES, 1, 1e-2)
            assert changed(model, before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    # What is not linear has been trained and was never rounded.
    assert not {name for name in changed(model, before) if name.endswith("proj.weight")}

    model = llama(tokenizer)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    before = state(model)
    with pytest.raises(NonFiniteError), quantised(model, "int4"):
        pass
    assert not changed(model, before)


def test_transposed_layers_are_grouped_along_their_inputs():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=24, n_layer=1, n_head=2, n_positions=16)
    model = GPT2LMHeadModel(config)
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    with quantised(model, "int4") as names:
        assert len(names) == 4
        found = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    assert torch.equal(found, int_rtn(weight.T).T)
    assert not torch.equal(found, int_rtn(weight))


def test_a_shared_layer_is_rounded_once(tokenizer):
    model = llama(tokenizer, tie_word_embeddings=True)
    first, second = (layer.self_attn.q_proj for layer in model.model.layers)
    second.weight = first.weight
    wanted = nf4_rtn(first.weight)
    with quantised(model, "nf4") as names:
        assert len(names) == 2 * 7 - 1
        assert torch.equal(first.weight, wanted)
        assert second.weight is first.weight


def test_what_cannot_be_quantised_is_refused(tokenizer):
    model = llama(tokenizer)
    with pytest.raises(EditError, match="quantisation int3"), quantised(model, "int3"):
        pass
    model.model.layers = nn.ModuleList()
    with pytest.raises(EditError, match="no linear layers"), quantised(model, "int4"):
        pass


# Rows that are whole blocks, rows that are none, odd ones, and a last block that is not full.
SHAPES = [(64, 64), (96, 32), (72, 384), (33, 17), (33, 18), (8, 160), (5, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_our_nf4_is_that_of_the_library(shape, capfd):
    pytest.importorskip("bitsandbytes")
    weight = torch.randn(shape)
    ours, theirs = (ROUNDINGS[name](weight) for name in ("nf4", "nf4-bitsandbytes"))
    assert capfd.readouterr() == ("", "")
    assert not torch.equal(ours, weight)
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-8)
    weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        ROUNDINGS["nf4-bitsandbytes"](weight)


def test_a_library_that_is_missing_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional", raising=False)
    model = llama(tokenizer)
    before = state(model)
    with (
        pytest.raises(WeightSurgeryError, match="bitsandbytes cannot be loaded"),
        quantised(model, "nf4-bitsandbytes"),
    ):
        pass
    assert not changed(model, before)
