"""A model's predictions at the last places of texts; a common beginning is read once.

Questions put to a chat model begin with the same dozens of tokens, its system prompt. Where a model
heeds it, all texts stand in one sequence (:mod:`weightsurgery.learning.packed`). Else such a
beginning is read once a batch, and what the layers keep of it (keys and values) serves every text.
Gradients flow through it either way as if each text had read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.data import padding_token
from weightsurgery.learning.packed import begun_alike, families, keeps_all, packed, packs, passes
from weightsurgery.learning.sharding import unrecorded
from weightsurgery.progress import Progress

__all__ = ["grouped", "last_logits", "last_probabilities", "read_beginning", "together"]

# Tokens of a batch, padding included: their activations are held for gradients.
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
    batches: list[list[int]] = []
    for family in families(texts):
        numbers = sorted(family, key=lambda n: (before[n] if before else 0, len(texts[n]), n))
        batch: list[int] = []
        longest = 0
        for number in numbers:
            longest = max(longest, len(texts[number]))
            if batch and (len(batch) == size or longest * (len(batch) + 1) > most):
                batches.append(batch)
                batch, longest = [], len(texts[number])
            batch.append(number)
        batches.append(batch)
    return batches


def together(model: Any, texts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Numbers of the texts by pass, as :func:`last_logits` is to be given them.

    Args:
        model: It decides whether they stand in one sequence or in rows.
        texts: Tokens of each.
        size: Texts of a pass at most, in rows.
    """
    return passes(texts) if packs(model) else grouped(texts, size)


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
    if packs(model):
        given = packed(model, texts, counts)
        columns = given.pop("columns")
        with _head_reads(model, torch.zeros_like(columns), columns) as reading:
            packed_logits: Tensor = model(**given).logits
        return packed_logits[0] if reading else packed_logits[0, columns]
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
    whole = ExitStack()

    def pick(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        met.append(True)
        # Logits of three digits would not be exact enough: not in autocast.
        whole.enter_context(torch.autocast(rows.device.type, enabled=False))
        states = given[0]  # on the head's device, if the model is spread over several
        at = rows.to(states.device), columns.to(states.device)
        return (states[at][None].to(head.weight.dtype), *given[1:])

    if head is None:
        yield met
        return
    before = head.register_forward_pre_hook(pick)
    after = head.register_forward_hook(lambda *_: whole.close())
    try:
        yield met
    finally:
        whole.close()
        before.remove()
        after.remove()


def _shared(model: Any, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> int:
    """Length of the common beginning, which is read once, before any place that counts."""
    if getattr(model, "is_activation_checkpointing", False):
        return 0
    length = begun_alike(texts, min(len(t) - count for t, count in zip(texts, counts, strict=True)))
    return length if length and keeps_all(model) else 0


def read_beginning(model: Any, tokens: Sequence[int], copies: int) -> Any:
    """Keys and values of the beginning, for so many texts."""
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


@unrecorded()
def last_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[Sequence[int], int]],
    *,
    batch_size: int = 32,
    stage: str = "",
    progress: Progress | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """A model's predictions at the last places of texts, a text at a time and in any order.

    Args:
        model: Left in evaluation mode.
        tokenizer: Pads.
        rows: Tokens, and how many of the last places count.
        batch_size: Texts per forward pass.
        stage: What to call this to ``progress``.
        progress: Called after every batch.

    Yields:
        A row's number, and its probabilities, float32, shape (places, vocabulary).
    """
    model.eval()  # type: ignore[no-untyped-call]
    done = 0
    for numbers in together(model, [read for read, _ in rows], batch_size):
        counts = [rows[n][1] for n in numbers]
        stacked = last_logits(
            model, [rows[n][0] for n in numbers], counts, padding_token(tokenizer)
        )
        for n, logits in zip(numbers, torch.split(stacked, counts), strict=True):
            yield n, logits.float().softmax(-1)
        done += len(numbers)
        if progress is not None:
            progress(stage, done, len(rows))
