"""What plans say that each process holds where several share a model."""

import pytest

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.unlearning.shared_plan import Shares, shared_memory, shared_text

HIDDEN, MLP, LAYERS, KEYS, VOCABULARY = 4096, 14336, 32, 1024, 128256
SHAPES = {
    "mlp.down_proj": (HIDDEN, MLP),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
}


def eight_billion():
    """The tensors of Llama 3 8B, without its norms, and the names of its linear layers."""
    shapes = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in SHAPES.items()
    }
    ends = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, HIDDEN))
    entries = {
        name: TensorEntry(name, "BF16", shape, "", 0, 0)
        for name, shape in {**shapes, **ends}.items()
    }
    return entries, list(shapes)


ENTRIES, NAMES = eight_billion()
LINEAR = LAYERS * (2 * HIDDEN**2 + 2 * HIDDEN * KEYS + 3 * HIDDEN * MLP)
ALL = LINEAR + 2 * VOCABULARY * HIDDEN
# Whole for a while: two layers and the head.
PASSING = 4 * (2 * LINEAR // LAYERS + VOCABULARY * HIDDEN)


@pytest.mark.parametrize("processes", [1, 8, 64])
def test_what_is_trained_in_full_is_shared(processes):
    (held,) = shared_memory(ENTRIES, Shares(NAMES, None, 2), [processes])
    # Weights; gradients, two moments and two copies; the gradients of a layer, and their sum.
    shared = 4 * ALL + 4 * (3 + 2) * LINEAR
    assert held.device == pytest.approx(
        shared / processes + PASSING + 2 * 4 * LINEAR // LAYERS, abs=processes
    )
    assert held.host == 3 * 4 * LINEAR


def test_an_adapter_is_whole_in_each():
    rank = 32
    numbers = rank * LAYERS * sum(sum(shape) for shape in SHAPES.values())
    two, eight = shared_memory(ENTRIES, Shares(NAMES, rank, 1), [2, 8])
    assert two.device == pytest.approx(2 * ALL + PASSING + 4 * 5 * numbers, abs=2)
    assert two.device - eight.device == pytest.approx(4 * ALL * (1 / 2 - 1 / 8), abs=2)
    assert two.host == eight.host == 3 * 4 * numbers


def test_eigenvectors_are_shared_and_sums_are_not():
    widths = [HIDDEN, MLP]
    free, confined, summing = (
        shared_memory(ENTRIES, Shares(NAMES, None, 0, False, *more), [8])[0]
        for more in ((), (widths,), (widths, 10**12))
    )
    more = 4 * (HIDDEN**2 + MLP**2) / 8 + 4 * MLP**2
    assert confined.device - free.device == pytest.approx(more, abs=2)
    assert summing.device == pytest.approx(4 * ALL / 8 + 10**12, rel=0.02)
    assert free.host == 4 * LINEAR


def test_the_launch_says_how_many_there_are(monkeypatch):
    assert [each.processes for each in shared_memory(ENTRIES, Shares(NAMES))] == [2, 8]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert [each.processes for each in shared_memory(ENTRIES, Shares(NAMES))] == [2, 8]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    shared = shared_memory(ENTRIES, Shares(NAMES))
    assert [each.processes for each in shared] == [3]
    text = shared_text(shared, lambda count: f"{count / 1e9:.0f} GB")
    assert text.startswith("3 processes ")
    assert text.endswith("; the first also 84 GB by the processor")
