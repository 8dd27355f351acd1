"""Common beginnings of texts, which need be read only once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["begun_alike", "families", "keeps_all"]

# Fewer tokens in common, or fewer texts, are not worth a pass of their own.
_WORTH, _TEXTS = 12, 3

# Texts that begin with the same so many tokens go together.
_ALIKE = 8


def families(texts: Sequence[Sequence[int]], least: int = _TEXTS) -> list[list[int]]:
    """Numbers of the texts by beginning; those of fewer than ``least`` are one, the last."""
    begun: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        begun.setdefault(tuple(text[:_ALIKE]), []).append(number)
    alone = [number for numbers in begun.values() if len(numbers) < least for number in numbers]
    alike = [numbers for numbers in begun.values() if len(numbers) >= least]
    return alike + ([sorted(alone)] if alone else [])


def begun_alike(texts: Sequence[Sequence[int]], most: int, least: int = _TEXTS) -> int:
    """Length of the texts' common beginning, at most ``most``; 0 where it is not worth a pass."""
    if len(texts) < least:
        return 0
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    count = min(sum(1 for _ in same), most)
    return count if count >= _WORTH else 0


def keeps_all(model: Any) -> bool:
    """Whether the layers keep all keys and values: windows and states cannot be handed round."""
    if getattr(model, "_is_stateful", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
