"""The merging systems: what they negate is what their papers negate, and nothing else changes."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, logits, loss, state, tiny
from tests.procedures.taught import train
from weightsurgery.errors import EditError, SelectionError, UnsupportedCheckpointError
from weightsurgery.learning import identify
from weightsurgery.learning.adapter import attach, factors
from weightsurgery.learning.identify import ALL_LINEAR
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.scaling import attached, folded, train_scaling
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning import merging
from weightsurgery.unlearning.merging import ByMerging, Line
from weightsurgery.unlearning.methods import SYSTEMS, system
from weightsurgery.unlearning.scale_choice import with_change
from weightsurgery.unlearning.system import ChangeRequest

MERGERS = {name: kind for name, kind in SYSTEMS.items() if issubclass(kind, ByMerging)}

TRAINING = Training(steps=6, learning_rate=2e-3, batch_size=4)

# Of logits of size 1 to 10 in float32, through two layers of an edited and of an adapted model.
CLOSE = 2e-4


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return train(tiny(request.param), FACTS + OTHER, 25, 5e-3)


@pytest.fixture(scope="module")
def llama():
    return train(tiny("llama"), FACTS + OTHER, 60, 5e-3)


def request_for(model, **settings) -> ChangeRequest:
    names = tuple(ALL_LINEAR.resolve(entries_of(model)))
    return ChangeRequest(
        model, byte_tokenizer(), names, FACTS, OTHER, training=TRAINING, settings=settings
    )


def find_line(name, request):
    return merging.find_line(system(name), request)


def said(model, change=None):
    with with_change(model, change or {}):
        return logits(model, FACTS + OTHER)


def far(one, other) -> float:
    return float((one - other).abs().max())


# CPEM: A or B, never both; (1 + s) − s·l


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_negating_one_factor_of_an_adapter_negates_its_change(model, part):
    names = list(ALL_LINEAR.resolve(entries_of(model)))
    base, scale = said(model), 0.7
    adapted = attach(model, names, 4, 8.0, 0)
    try:
        with torch.no_grad():
            for name, each in adapted.named_parameters():
                if "lora_B" in name:  # zero at first
                    each.copy_(0.05 * torch.randn(each.shape))
        change = {n: each.matrix() for n, each in factors(adapted, names).items()}
        trained = logits(adapted, FACTS + OTHER)
        with torch.no_grad():
            for name, each in adapted.named_parameters():
                if part in name:
                    each.mul_(-scale)
        negated = logits(adapted, FACTS + OTHER)
    finally:
        adapted.unload()
    assert far(trained, base) > 0.1
    assert far(negated, base) > 0.1
    assert far(said(model, change), trained) < CLOSE
    assert far(said(model, Line(change).at(scale)), negated) < CLOSE


def test_negating_both_factors_changes_nothing(model):
    """The pitfall: ``(−B)(−A) = BA``."""
    names = list(ALL_LINEAR.resolve(entries_of(model)))
    adapted = attach(model, names, 4, 8.0, 0)
    try:
        with torch.no_grad():
            for name, each in adapted.named_parameters():
                if "lora_B" in name:
                    each.copy_(0.05 * torch.randn(each.shape))
        change = {n: each.matrix() for n, each in factors(adapted, names).items()}
        trained = logits(adapted, FACTS + OTHER)
        with torch.no_grad():
            for name, each in adapted.named_parameters():
                if "lora_" in name:
                    each.neg_()
        both = logits(adapted, FACTS + OTHER)
    finally:
        adapted.unload()
    assert far(said(model, Line(change).at(1.0)), trained) > 0.1  # what negation should have done
    assert torch.equal(both, trained)


def drawn_vectors(adapted):
    """Scaling vectors other than ones, on layers whose biases are not zero either."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, each in adapted.named_parameters():
            if "ia3_l" in name:
                each.add_(0.3 * torch.randn(each.shape, generator=generator))
            elif name.endswith("c_attn.base_layer.bias"):
                each.add_(torch.randn(each.shape, generator=generator))


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_scaling_vectors_fold_into_the_weights_and_are_negated_as_published(model, scale):
    model = copy.deepcopy(model)
    names = list(ALL_LINEAR.resolve(entries_of(model)))
    with attached(model, names) as adapted:
        drawn_vectors(adapted)
        change = folded(adapted)
        trained = logits(adapted, FACTS + OTHER)
        with torch.no_grad():
            for name, each in adapted.named_parameters():
                if "ia3_l" in name:
                    each.copy_((1 + scale) - scale * each)
        negated = logits(adapted, FACTS + OTHER)
    assert far(trained, said(model)) > 0.1
    assert far(negated, said(model)) > 0.1
    assert far(said(model, change), trained) < CLOSE
    assert far(said(model, Line(change).at(scale)), negated) < CLOSE


def test_keys_values_and_the_inside_of_the_mlp_are_scaled(llama):
    """What each vector multiplies: outputs of k and v, inputs of the MLP's last layer."""
    with attached(llama, list(ALL_LINEAR.resolve(entries_of(llama)))) as adapted:
        drawn_vectors(adapted)
        change = folded(adapted)
    kinds = {name.split(".")[-2] for name in change}
    assert kinds == {"k_proj", "v_proj", "down_proj"}
    assert len(change) == 3 * llama.config.num_hidden_layers
    for name, t in change.items():
        ratio = t / llama.get_parameter(name).detach()  # l − 1, the same all along rows or columns
        along, across = (0, 1) if "down_proj" in name else (1, 0)
        assert float(ratio.std(along).max()) < 1e-4
        assert float(ratio.std(across).min()) > 0.1


def test_vectors_of_ones_change_nothing(model):
    model = copy.deepcopy(model)
    base = said(model)
    with attached(model, list(ALL_LINEAR.resolve(entries_of(model)))) as adapted:
        assert torch.equal(logits(adapted, FACTS + OTHER), base)
        assert not any(t.any() for t in folded(adapted).values())
        drawn_vectors(adapted)
        assert all(t.any() for t in folded(adapted).values())


def test_scaling_vectors_learn_and_are_taken_off_again(model):
    before, thawed = state(model), [p.requires_grad for p in model.parameters()]
    training = Training(steps=40, learning_rate=0.2, batch_size=8)
    change = train_scaling(model, byte_tokenizer(), FACTS, training)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [p.requires_grad for p in model.parameters()] == thawed
    assert not hasattr(model, "peft_config")
    assert set(change) <= set(before)
    first = loss(model, FACTS)
    with with_change(model, change):
        assert loss(model, FACTS) < 0.995 * first
    with with_change(model, Line(change).at(1.0)):
        assert loss(model, FACTS) > 1.02 * first


def test_layers_that_cannot_be_scaled_are_refused(llama):
    names = list(ALL_LINEAR.resolve(entries_of(llama)))
    with (
        pytest.raises(SelectionError, match="no selected layer"),
        attached(llama, [name for name in names if "q_proj" in name]),
    ):
        pass
    with pytest.raises(EditError, match="no examples"):
        train_scaling(llama, byte_tokenizer(), [], TRAINING)
    other = tiny("llama")
    other.config.model_type = "unheard-of"
    with (
        pytest.raises(UnsupportedCheckpointError, match="unheard-of"),
        attached(other, names),
    ):
        pass
    gpt2 = request_for(tiny("gpt2"))
    with pytest.raises(UnsupportedCheckpointError, match=r"c_attn\.bias': .* scales this bias too"):
        find_line("cpem-ia3", gpt2)
    half = tiny("llama").half()
    with pytest.raises(EditError, match="float16"), attached(half, names):
        pass


# All of them


def test_a_line_is_start_less_scale_times_direction():
    direction = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([4.0])}
    assert torch.equal(Line(direction).at(0.5)["a"], torch.tensor([-0.5, 1.0]))
    line = Line(direction, {"a": torch.tensor([10.0, 20.0])})
    assert torch.equal(line.at(0.5)["a"], torch.tensor([9.5, 21.0]))
    assert torch.equal(line.at(2.0)["b"], torch.tensor([-8.0]))
    assert torch.equal(line.at(0.0)["a"], line.start["a"])


@pytest.mark.parametrize("name", MERGERS)
def test_each_unlearns_more_the_further_it_goes_and_restores_the_model(model, name):
    before = state(model)
    request = request_for(model, **({"seeds": 1} if name == "negmerge" else {}))
    if name == "cpem-ia3":
        biases = tuple(each for each in before if each.endswith("attn.c_attn.bias"))
        request = replace(
            request,
            names=(*request.names, *biases),
            training=replace(TRAINING, steps=40, learning_rate=0.2, batch_size=8),
        )
    if name == "cpem-lora":
        request = replace(request, training=replace(TRAINING, steps=15, learning_rate=5e-3))
    model.requires_grad_(True)
    line = find_line(name, request)
    assert all(each.requires_grad for each in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[each], value) for each, value in before.items())
    assert any(t.any() for t in line.direction.values())
    assert set(line.start) <= set(line.direction)
    for each, t in line.direction.items():
        assert t.shape == before[each].shape
        assert t.dtype == torch.float32
    losses = []
    for scale in (0.0, 0.5, 1.0, 2.0):
        with with_change(model, line.at(scale)):
            losses.append(loss(model, FACTS))
    assert losses == sorted(losses)
    assert losses[-1] > 1.1 * losses[0]
    assert all(torch.equal(model.state_dict()[each], value) for each, value in before.items())


def test_an_adapter_is_of_the_rank_that_is_asked_for(llama):
    request = request_for(llama)
    whole = find_line("task-vector", request).direction
    name = next(iter(whole))
    assert int(torch.linalg.matrix_rank(whole[name])) > MERGERS["cpem-lora"].adapter_rank
    for asked, wanted in ((None, 16), (3, 3)):
        found = find_line("cpem-lora", replace(request, lora_rank=asked)).direction
        assert int(torch.linalg.matrix_rank(found[name], rtol=1e-5)) == wanted
    few = find_line("task-vector", replace(request, lora_rank=3)).direction
    assert int(torch.linalg.matrix_rank(few[name], rtol=1e-5)) == 3


def test_negmerge_agrees_with_every_one_of_its_vectors(model, monkeypatch):
    inner, found = identify.train_vector, []

    def kept(*args, **kwargs):
        found.append(inner(*args, **kwargs))
        return {name: t.clone() for name, t in found[-1].items()}

    monkeypatch.setattr(identify, "train_vector", kept)
    line = find_line("negmerge", request_for(model, spread=3.0, seeds=2))
    assert len(found) == 6  # three learning rates, two seeds, which shuffle
    name = next(iter(found[0]))
    assert len({float(each[name].norm()) for each in found}) == 6
    signs = torch.stack([each[name].sign() for each in found])
    same = (signs == signs[0]).all(0) & (signs[0] != 0)
    assert 0 < int(same.sum()) < same.numel()
    mean = torch.stack([each[name].double() for each in found]).mean(0)
    assert torch.equal(line.direction[name] != 0, same)
    assert torch.allclose(line.direction[name], (mean * same).float(), rtol=1e-6, atol=0)


def test_ext_sub_spares_what_each_output_shares_with_the_good_change(model):
    """Rows are those of one output, however the model stores them; checked against NumPy."""
    line = find_line("ext-sub", request_for(model))
    bad = find_line("task-vector", request_for(model)).direction
    turned = 0
    for name, t in bad.items():
        flip = model.config.model_type == "gpt2"
        turned += flip and t.shape[0] != t.shape[1]
        w2, w1, left = (
            (x.T if flip else x).double().numpy()
            for x in (t, line.start[name], line.direction[name])
        )
        c = w1 / np.linalg.norm(w1, axis=1)[:, None] + w2 / np.linalg.norm(w2, axis=1)[:, None]
        c /= np.linalg.norm(c, axis=1)[:, None]
        wanted = w2 - (w2 * c).sum(1)[:, None] * c
        assert np.linalg.norm(wanted - w2) > 0.1 * np.linalg.norm(w2)
        assert np.linalg.norm(left - wanted) <= 1e-5 * np.linalg.norm(w2)
    assert turned or model.config.model_type == "llama"
    spared = find_line("ext-sub", request_for(model, expert=0.0))
    assert not any(t.any() for t in spared.start.values())
    assert all(torch.equal(spared.direction[n], t) for n, t in line.direction.items())


def test_ethos_takes_the_basis_of_weights_tuned_to_what_is_kept(llama):
    """``Uᵀ ΔW V`` with ``W₀ + ΔW_aux = U S Vᵀ``, by NumPy; not the basis of ``W₀`` itself."""
    request = request_for(llama)
    found = find_line("ethos", request_for(llama, threshold=0.3)).direction
    vector = find_line("task-vector", request).direction
    auxiliary = find_line("task-vector", replace(request, forget=request.keep)).direction

    def filtered(weights, change):
        u, _, v = np.linalg.svd(weights.double().numpy(), full_matrices=False)
        entries = u.T @ change @ v.T
        small = np.abs(entries) < 0.3 * np.abs(entries).max()
        return change - u @ (entries * small) @ v

    for name, t in vector.items():
        before, change = llama.get_parameter(name).detach(), t.double().numpy()
        wanted, other = filtered(before + auxiliary[name], change), filtered(before, change)
        size = np.linalg.norm(change)
        assert np.linalg.norm(found[name].double().numpy() - wanted) < 1e-3 * size, name
        assert np.linalg.norm(wanted - change) > 0.01 * size
        assert np.linalg.norm(other - wanted) > 0.01 * size


def test_ethos_drops_more_at_a_higher_threshold(llama):
    whole = find_line("task-vector", request_for(llama)).direction
    left = {
        t: find_line("ethos", request_for(llama, threshold=t)).direction for t in (0.0, 0.03, 0.3)
    }
    name = next(iter(whole))
    assert torch.allclose(left[0.0][name], whole[name], atol=1e-8)
    sizes = [float(each[name].norm()) for each in left.values()]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_what_makes_no_sense_is_refused(llama):
    request = request_for(llama)
    with pytest.raises(EditError, match="'nothing'"):
        find_line("nothing", request)
    with pytest.raises(EditError, match="without examples to keep"):
        find_line("ethos", replace(request, keep=()))
    with pytest.raises(EditError, match="without examples to forget"):
        find_line("task-vector", replace(request, forget=()))
    with pytest.raises(EditError, match="as a LoRA adapter"):
        find_line("cpem-ia3", replace(request, lora_rank=4))
    for name, wrong in (
        ("task-vector", {"threshold": 0.1}),
        ("ethos", {"threshold": 2}),
        ("ethos", {"threshold": "much"}),
        ("negmerge", {"seeds": 0}),
        ("negmerge", {"seeds": 1.5}),
        ("negmerge", {"spread": True}),
        ("ext-sub", {"scale": math.nan}),
        ("ext-sub", {"expert": math.inf}),
        ("ext-sub", {"expert": None}),
    ):
        with pytest.raises(EditError, match=next(iter(wrong))):
            settings_of(system(name), wrong)
    ethos = system("ethos")
    assert asdict(settings_of(ethos, {"scale": 2})) == {"scale": 2, "threshold": 0.03}
    assert settings_of(ethos, {"scale": None}).scale is None
