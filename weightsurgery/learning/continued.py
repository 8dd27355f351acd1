"""Continuations of many prompts at once; the common beginning of a batch is read once.

Prompts put to a chat model begin with the same dozens of tokens, its system prompt, and so do those
that show the model some rows first. See :mod:`weightsurgery.learning.last_places`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from weightsurgery.learning.last_places import grouped, read_beginning
from weightsurgery.learning.models import quiet
from weightsurgery.learning.packed import begun_alike, keeps_all
from weightsurgery.learning.sharding import unrecorded

__all__ = ["batches", "continued"]

# Tokens of a batch's prompts at most, padding included.
_MOST = 16_384


def batches(prompts: Sequence[Sequence[int]], limits: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of the prompts in batches: beginnings alike, then limits, then lengths.

    Args:
        prompts: Tokens of each.
        limits: How many tokens may be added to each.
        size: Prompts of a batch at most.
    """
    return grouped(prompts, size, _MOST, limits)


@unrecorded()
def continued(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    padding: int,
    settings: GenerationConfig,
    stopping: Sequence[StoppingCriteria] = (),
    choosing: Sequence[LogitsProcessor] = (),
) -> list[list[int]]:
    """Continuations of a batch of prompts.

    Args:
        model: A causal language model.
        prompts: Tokens, at least one in each.
        padding: Token to pad with, on the left; it is masked.
        settings: All of the generation's; the model's own are left out.
        stopping: What may end it.
        choosing: What may change the logits before the next token is taken.

    Returns:
        The tokens added to each, all of them: ends of text and padding behind them included.
    """
    shared = 0
    if keeps_all(model):
        shared = begun_alike(prompts, min(map(len, prompts)) - 1)
    inner = [list(prompt[shared:]) for prompt in prompts]
    width = shared + max(map(len, inner))
    ids = torch.full((len(prompts), width), padding)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    ids[:, :shared] = torch.tensor(prompts[0][:shared], dtype=torch.int64)
    mask[:, :shared] = 1
    for row, tokens in enumerate(inner):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    more: dict[str, Any] = {}
    if shared:
        more["past_key_values"] = read_beginning(model, prompts[0][:shared], len(prompts))
    if stopping:
        more["stopping_criteria"] = StoppingCriteriaList(stopping)
    if choosing:
        more["logits_processor"] = LogitsProcessorList(choosing)
    with plain_generation(model), quiet():
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            **more,
        )
    added: list[list[int]] = out[:, width:].tolist()
    return added


@contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Clears the model's generation settings inside, which fill what a caller leaves open."""
    settings = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = settings
