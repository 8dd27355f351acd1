"""What sums of activations may take: models of the sizes that people have are not refused."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from weightsurgery.errors import EditError
from weightsurgery.learning import activations
from weightsurgery.learning.activations import linear_inputs, sums_bound

# Hidden and inner width: Llama-3.1-8B, Qwen2.5-7B, Llama-3.1-70B.
WIDTHS = {"8b": (4096, 14336), "7b": (3584, 18944), "70b": (8192, 28672)}


def shapes(size):
    """A model of such widths that takes no memory, and its layers, none sharing an input."""
    hidden, inner = WIDTHS[size]
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    layers = linear_inputs(model)
    shared = [
        activations._Shared((name,), module, width, 1) for name, (module, width) in layers.items()
    ]
    return model, layers, shared


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("usual", [2 << 30, 4 << 30])
def test_one_matrix_always_fits(size, usual):
    model, layers, shared = shapes(size)
    too_large = 12 * WIDTHS[size][1] ** 2 > usual
    if too_large:  # as it was
        with pytest.raises(EditError, match="are allowed") as refused:
            activations._passes(shared, usual)
        assert "--max-memory" in refused.value.remedy
    bound = sums_bound(model, layers, usual)
    assert bound == (12 * WIDTHS[size][1] ** 2 if too_large else usual)
    passes = activations._passes(shared, bound)
    assert sum(map(len, passes)) == len(layers)
    assert all(sum(8 * each.width**2 for each in one) <= bound for one in passes)


def test_the_widest_are_those_that_were_refused():
    assert [size for size, (_, inner) in WIDTHS.items() if 12 * inner**2 > 4 << 30] == ["7b", "70b"]


def test_on_a_gpu_it_is_half_of_what_is_free(monkeypatch):
    model, layers, shared = shapes("8b")
    few = len(activations._passes(shared, sums_bound(model, layers)))

    class OnGpu:
        def parameters(self):
            return iter([type("P", (), {"device": torch.device("cuda:1")})])

    asked = []

    def mem_get_info(device):
        asked.append(device)
        return 60 << 30, 80 << 30

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    bound = sums_bound(OnGpu(), layers)
    assert (bound, asked) == (30 << 30, [torch.device("cuda:1")])
    assert len(activations._passes(shared, bound)) < few
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 80 << 30))
    assert sums_bound(OnGpu(), layers) == sums_bound(model, layers)
