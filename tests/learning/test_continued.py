"""Continuations do not feel what a batch reads once, nor who else is in it."""

import pytest
import torch
from transformers import GenerationConfig

from tests.learning.tiny import tiny
from weightsurgery.learning import continued as module
from weightsurgery.learning.continued import batches, continued

BEGUN = list(range(10, 30))
PROMPTS = [BEGUN + rest for rest in ([40, 41, 42], [50], [60, 61, 62, 63, 64, 65], [70, 71])]
SETTINGS = GenerationConfig(max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=2)


def read(model):
    """Columns of each forward pass, as they come."""
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_beginning_read_once_changes_no_token(family):
    model = tiny(family)
    alone = [continued(model, [prompt], 2, SETTINGS)[0] for prompt in PROMPTS]
    assert len({tuple(each) for each in alone}) > 1  # the prompts tell
    seen = read(model)
    assert continued(model, PROMPTS, 2, SETTINGS) == alone
    assert seen[:2] == [(1, len(BEGUN)), (4, 6)]
    # A prompt that is the beginning itself keeps its last token: something must be read.
    whole = [BEGUN, [*BEGUN, 40], [*BEGUN, 41]]
    alone = [continued(model, [prompt], 2, SETTINGS)[0] for prompt in whole]
    seen.clear()
    assert continued(model, whole, 2, SETTINGS) == alone
    assert seen[0] == (1, len(BEGUN) - 1)


def test_what_has_no_such_cache_is_read_whole():
    model = tiny("mixtral", sliding_window=8)
    alone = [continued(model, [prompt], 2, SETTINGS)[0] for prompt in PROMPTS]
    seen = read(model)
    assert continued(model, PROMPTS, 2, SETTINGS) == alone
    assert seen[0] == (4, len(BEGUN) + 6)


def test_the_models_own_settings_are_left_out_and_come_back():
    model = tiny("llama")
    own = model.generation_config = GenerationConfig(max_new_tokens=1, repetition_penalty=9.0)
    (found,) = continued(model, [PROMPTS[0]], 2, SETTINGS)
    assert len(found) == 6
    assert model.generation_config is own


def test_batches_are_a_partition_by_beginnings_and_limits():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 40, (70,), generator=generator).tolist()
    limits = torch.randint(1, 4, (70,), generator=generator).tolist()
    prompts = [[number % 2] * 9 + [7] * length for number, length in enumerate(lengths)]
    found = batches(prompts, limits, 8)
    assert sorted(number for batch in found for number in batch) == list(range(70))
    assert max(map(len, found)) == 8
    for batch in found:
        assert len({number % 2 for number in batch}) == 1
    # Few batches hold more than one limit: nobody waits long for others.
    assert sum(len({limits[number] for number in batch}) > 1 for batch in found) <= 4
    long = batches([[1] * 6000] * 4, [5] * 4, 8)
    assert [len(batch) for batch in long] == [2, 2]
    assert module._MOST >= 2 * 6000
