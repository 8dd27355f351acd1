"""What a model says at the last places of texts; what all of them begin with is read once.

Questions put to a chat model begin with the same dozens of tokens, its system prompt. They are read
once a batch, and what the layers keep of them (keys and values) serves every text; gradients flow
through it as if each text had read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["begun_alike", "grouped", "keeps_all", "last_logits", "read_beginning"]

# Fewer tokens in common, or fewer texts, are not worth a pass of their own.
_WORTH, _TEXTS = 12, 3

# Texts that begin with the same so many tokens go together.
_ALIKE = 8

# Tokens of a batch, padding included: what is kept of them for gradients is held at once.
_MOST = 1024


def grouped(
    texts: Sequence[Sequence[int]],
    size: int,
    most: int = _MOST,
    before: Sequence[int] | None = None,
) -> list[list[int]]:
    """Numbers of the texts in batches: beginnings alike, then lengths alike.

    Args:
        texts: Tokens of each.
        size: Texts of a batch at most.
        most: Tokens of a batch at most, padding included, but for a text that has more.
        before: A number of each text that is alike in a batch before lengths are.
    """
    begun: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        begun.setdefault(tuple(text[:_ALIKE]), []).append(number)
    alone = [numbers for numbers in begun.values() if len(numbers) < _TEXTS]
    groups = [numbers for numbers in begun.values() if len(numbers) >= _TEXTS]
    groups += [[number for numbers in alone for number in numbers]] if alone else []
    found: list[list[int]] = []
    for numbers in groups:
        numbers.sort(key=lambda n: (before[n] if before else 0, len(texts[n]), n))
        batch: list[int] = []
        longest = 0
        for number in numbers:
            longest = max(longest, len(texts[number]))
            if batch and (len(batch) == size or longest * (len(batch) + 1) > most):
                found.append(batch)
                batch, longest = [], len(texts[number])
            batch.append(number)
        found.append(batch)
    return found


def last_logits(
    model: Any, texts: Sequence[Sequence[int]], counts: Sequence[int], padding: int
) -> Tensor:
    """Logits at the last places of each text, and nowhere else: a vocabulary is wide.

    Args:
        model: A causal language model, an adapter on it or not.
        texts: Tokens of each, at least one.
        counts: How many of the last places of each, at least 1 and at most its length.
        padding: Token to pad with; it is masked.

    Returns:
        Of all places of the first text, of the second, and so on, shape (sum of counts,
        vocabulary), on the model's device.
    """
    shared = _shared(model, texts, counts)
    inner = [list(text[shared:]) for text in texts]
    width = max(map(len, inner))
    device = next(model.parameters()).device
    ids = torch.full((len(inner), width), padding)
    mask = torch.zeros((len(inner), shared + width), dtype=torch.int64)
    mask[:, :shared] = 1
    for row, text in enumerate(inner):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, shared : shared + len(text)] = 1
    places = [
        (row, len(text) - count + n)
        for row, (text, count) in enumerate(zip(inner, counts, strict=True))
        for n in range(count)
    ]
    rows, columns = torch.tensor(places, device=device).T
    more: dict[str, Any] = {"use_cache": False}
    if shared:
        more = {
            "past_key_values": read_beginning(model, texts[0][:shared], len(inner)),
            "use_cache": True,
        }
    with _head_reads(model, rows, columns) as reading:
        logits: Tensor = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), **more
        ).logits
    return logits[0] if reading else logits[rows, columns]


@contextmanager
def _head_reads(model: Any, rows: Tensor, columns: Tensor) -> Iterator[list[bool]]:
    """Gives a model's head these places of its input alone, as one row.

    Yields:
        A list that is empty where the head was not come upon: all logits are there then.
    """
    head = model.get_output_embeddings()
    met: list[bool] = []

    def pick(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        met.append(True)
        return (given[0][rows, columns][None], *given[1:])

    handle = None if head is None else head.register_forward_pre_hook(pick)
    try:
        yield met
    finally:
        if handle is not None:
            handle.remove()


def _shared(model: Any, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> int:
    """How many tokens are read once: what all texts begin with, before any place that counts."""
    if getattr(model, "is_activation_checkpointing", False):
        return 0
    found = begun_alike(texts, min(len(t) - count for t, count in zip(texts, counts, strict=True)))
    return found if found and keeps_all(model) else 0


def begun_alike(texts: Sequence[Sequence[int]], most: int) -> int:
    """How many tokens all texts begin with, up to so many; 0 where it is not worth a pass."""
    if len(texts) < _TEXTS:
        return 0
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    found = min(sum(1 for _ in same), most)
    return found if found >= _WORTH else 0


def keeps_all(model: Any) -> bool:
    """Whether the layers keep all keys and values: windows and states cannot be handed round."""
    if getattr(model, "_is_stateful", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def read_beginning(model: Any, tokens: Sequence[int], copies: int) -> Any:
    """What the layers keep of the beginning, for so many texts."""
    device = next(model.parameters()).device
    cache: Any = DynamicCache(config=model.config)
    model(
        input_ids=torch.tensor([list(tokens)], device=device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    for layer in cache.layers:
        layer.keys = layer.keys.expand(copies, -1, -1, -1)
        layer.values = layer.values.expand(copies, -1, -1, -1)
    return cache
