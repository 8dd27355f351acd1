"""What all texts begin with is read once, and nothing is different for it."""

import pytest
import torch

from tests.learning.tiny import tiny
from weightsurgery.learning import last_places as module
from weightsurgery.learning import packed as packing
from weightsurgery.learning.last_places import grouped, last_logits, together
from weightsurgery.learning.packed import Packed, packs, passes

BEGUN = list(range(10, 30))
TEXTS = [BEGUN + rest for rest in ([40, 41, 42], [50], [60, 61, 62, 63, 64, 65], [70, 71])]
COUNTS = [2, 1, 4, 2]
SHARED = len(BEGUN)


@pytest.fixture(params=["in one sequence", "in rows"])
def layout(request, monkeypatch):
    """Both ways to read many texts."""
    if request.param == "in rows":
        monkeypatch.setattr(module, "packs", lambda model: False)
    return request.param


def alone(model, texts, counts):
    """Each text by itself."""
    return [
        model(input_ids=torch.tensor([text])).logits[0, -count:]
        for text, count in zip(texts, counts, strict=True)
    ]


def assert_same(found, wanted):
    torch.testing.assert_close(found, torch.cat(wanted), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_the_shared_beginning_changes_no_logit(family, layout):
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
def test_gradients_flow_through_the_shared_beginning(family, layout):
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
def test_the_head_reads_no_other_place(headed, layout, monkeypatch):
    model, read = tiny("llama"), []
    if layout == "in one sequence":
        assert packs(model)  # tried, and known from now on
    model.lm_head.register_forward_hook(lambda _, given, out: read.append(out.shape[:2].numel()))
    if not headed:  # a model that does not say which its head is
        monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with torch.no_grad():
        found = last_logits(model, TEXTS, COUNTS, 2)
        if layout == "in one sequence":
            places = SHARED + sum(len(text) - SHARED for text in TEXTS)
            assert sum(read) == (sum(COUNTS) if headed else places)
        else:
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
            assert not packs(model)
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


# --- in one sequence -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_what_heeds_a_mask_is_found_out_by_trying(family, monkeypatch):
    model = tiny(family).train()
    assert packs(model)
    assert model.training
    again = tiny(family)
    own = again.forward
    # One that leaves masks out, as some do that know no other than their own.
    monkeypatch.setattr(again, "forward", lambda attention_mask=None, **given: own(**given))
    assert not packs(again)
    refuses = tiny(family)
    monkeypatch.setattr(refuses, "forward", lambda input_ids: own(input_ids=input_ids))
    assert not packs(refuses)


def test_nothing_is_there_twice_and_nobody_sees_another():
    made = Packed(TEXTS, COUNTS)
    tokens, positions = made.tokens[0].tolist(), made.positions[0].tolist()
    assert len(tokens) == SHARED + sum(len(text) - SHARED for text in TEXTS)
    sees = made.mask(torch.float32)[0, 0] == 0
    read = [[tokens[m] for m in torch.where(row)[0]] for row in sees]
    last = [read[column] for column in made.columns.tolist()]
    wanted = [
        text[: len(text) - count + n + 1]
        for text, count in zip(TEXTS, COUNTS, strict=True)
        for n in range(count)
    ]
    assert last == wanted  # each sees its own text, and that alone
    assert [positions[column] for column in made.columns.tolist()] == [len(t) - 1 for t in wanted]


def test_sequences_are_a_partition_of_bounded_length(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (90,), generator=generator).tolist()
    texts = [[n % 3] * 14 + [50 + n] * length for n, length in enumerate(lengths)]
    texts += [[7, n] for n in range(10, 15)] + [[5] * 900, [6] * 900]
    found = passes(texts)
    assert sorted(number for numbers in found for number in numbers) == list(range(len(texts)))
    for numbers in found:
        size = Packed([texts[n] for n in numbers], [1] * len(numbers)).tokens.shape[1]
        assert size <= packing._MOST or len(numbers) == 1
    # Beginnings are counted once: 90 of them would be longer than all the rest.
    assert len(found) <= 2 + -(-(sum(lengths) + 200) // packing._MOST) + 1
    assert passes([]) == []
    monkeypatch.setattr(module, "packs", lambda model: False)
    assert together(None, texts[:9], 4) == grouped(texts[:9], 4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_under_autocast_logits_are_whole(family, layout):
    """Layers multiply in bfloat16, and the head does not: it would round what is asked for."""
    model = tiny(family)
    heads = []
    head = model.get_output_embeddings()
    with torch.no_grad():
        exact = torch.cat(alone(model, TEXTS, COUNTS))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.cat(alone(model, TEXTS, COUNTS))
            assert rounded.dtype == torch.bfloat16
            seen = head.register_forward_hook(lambda _, given, __: heads.append(given[0]))
            found = last_logits(model, TEXTS, COUNTS, 2)
            # What comes after the head is in bfloat16 again.
            assert (head.weight @ head.weight.T).dtype == torch.bfloat16
        seen.remove()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, head(heads[-1])[0], atol=1e-6, rtol=1e-6)
    off = float((found - exact).norm() / exact.norm())
    assert 1e-5 < off < 0.05


def test_a_head_that_fails_leaves_nothing_changed():
    model = tiny("llama")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        broken = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            last_logits(model, TEXTS, COUNTS, 2)
        broken.remove()
        assert torch.is_autocast_enabled("cpu")
        assert not model.lm_head._forward_hooks
        assert not model.lm_head._forward_pre_hooks
