"""What all texts begin with is read once, and nothing is different for it."""

import pytest
import torch

from tests.learning.tiny import tiny
from weightsurgery.learning import last_places as module
from weightsurgery.learning.last_places import grouped, last_logits

BEGUN = list(range(10, 30))
TEXTS = [BEGUN + rest for rest in ([40, 41, 42], [50], [60, 61, 62, 63, 64, 65], [70, 71])]
COUNTS = [2, 1, 4, 2]
SHARED = len(BEGUN)


def alone(model, texts, counts):
    """Each text by itself."""
    return [
        model(input_ids=torch.tensor([text])).logits[0, -count:]
        for text, count in zip(texts, counts, strict=True)
    ]


def assert_same(found, wanted):
    torch.testing.assert_close(found, torch.cat(wanted), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_the_shared_beginning_changes_no_logit(family):
    model = tiny(family)
    with torch.no_grad():
        assert module._shared(model, TEXTS, COUNTS) == SHARED
        assert_same(last_logits(model, TEXTS, COUNTS, 2), alone(model, TEXTS, COUNTS))
        # The places that count may reach into what is shared: that much is read by each.
        counts = [5, 3, 8, 9]
        assert module._shared(model, TEXTS, counts) == min(
            len(text) - count for text, count in zip(TEXTS, counts, strict=True)
        )
        assert_same(last_logits(model, TEXTS, counts, 2), alone(model, TEXTS, counts))
        # The same text thrice, and texts that share nothing.
        same = [TEXTS[0]] * 3
        assert_same(last_logits(model, same, [1, 2, 3], 2), alone(model, same, [1, 2, 3]))
        others = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
        assert module._shared(model, others, [1, 1, 1]) == 0
        assert_same(last_logits(model, others, [3, 2, 1], 2), alone(model, others, [3, 2, 1]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_flow_through_the_shared_beginning(family):
    model = tiny(family)

    def gradients(logits):
        model.zero_grad()
        generator = torch.Generator().manual_seed(1)
        (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients(last_logits(model, TEXTS, COUNTS, 2))
    wanted = gradients(torch.cat(alone(model, TEXTS, COUNTS)))
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        assert float((found[name] - each).norm()) <= 1e-4 * float(each.norm()) + 1e-6, name
    # What is read once is felt: keys and values of the beginning have gradients of their own.
    rows = "model.embed_tokens.weight" if family == "llama" else "transformer.wte.weight"
    assert (found[rows][BEGUN].norm(dim=1) > 1e-4).all()


@pytest.mark.parametrize("headed", [True, False])
def test_the_head_reads_no_other_place(headed, monkeypatch):
    model, read = tiny("llama"), []
    model.lm_head.register_forward_hook(lambda _, given, out: read.append(out.shape[:2].numel()))
    if not headed:  # a model that does not say which its head is
        monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with torch.no_grad():
        found = last_logits(model, TEXTS, COUNTS, 2)
        shared = 1  # of the beginning, the last place's logits are made, and left
        places = sum(COUNTS) if headed else len(TEXTS) * (max(map(len, TEXTS)) - SHARED)
        assert sum(read) == places + shared
        assert_same(found, alone(model, TEXTS, COUNTS))


def test_windows_and_states_are_read_whole():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MambaConfig, MambaForCausalLM

    shape = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2}
    torch.manual_seed(0)
    mixed = Gemma3TextConfig(
        **shape, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        sliding_window=4, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    for model in (
        tiny("mixtral", sliding_window=8),
        Gemma3ForCausalLM(mixed).eval(),
        MambaForCausalLM(MambaConfig(**shape, state_size=4, pad_token_id=2)).eval(),
    ):
        with torch.no_grad():
            assert module._shared(model, TEXTS, COUNTS) == 0
            assert_same(last_logits(model, TEXTS, COUNTS, 2), alone(model, TEXTS, COUNTS))


def test_two_texts_or_a_short_beginning_are_not_worth_it():
    model = tiny("llama")
    assert module._shared(model, TEXTS[:2], COUNTS[:2]) == 0
    brief = [text[12:] for text in TEXTS]
    assert module._shared(model, brief, COUNTS) == 0
    model.gradient_checkpointing_enable()
    assert module._shared(model, TEXTS, COUNTS) == 0


@pytest.mark.parametrize("size", [1, 3, 50])
def test_groups_are_a_partition_of_what_begins_alike(size):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (60,), generator=generator).tolist()
    texts = [[number % 3] * min(length, 9) + [99] * length for number, length in enumerate(lengths)]
    texts += [[7, number] for number in range(10, 15)] + [[5] * 3000, [5] * 3000, [5] * 3000]
    groups = grouped(texts, size)
    assert sorted(number for group in groups for number in group) == list(range(len(texts)))
    assert max(map(len, groups)) <= size
    # Nobody waits for one much longer, and no batch is more than memory was counted for.
    for group in groups:
        longest = max(len(texts[number]) for number in group)
        assert len(group) == 1 or len(group) * longest <= module._MOST
        begun = {tuple(texts[number][:8]) for number in group}
        together = [number for number in group if len(texts[number]) >= 18]
        assert len(together) < 3 or len(begun) == 1
