"""Many texts in one sequence, each blind to the others; common beginnings stand there once.

A batch of short texts spends its time on padding, and on a pass of its own for the beginning that
they share. In one sequence there is neither: a mask lets a token see those before it in its text,
positions count from each text's own beginning, and the texts that begin alike branch off from one
beginning, as in tree attention (Miao et al., SpecInfer, arXiv 2305.09781, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from weightsurgery.learning.models import in_halves

__all__ = ["Packed", "begun_alike", "families", "keeps_all", "packed", "packs", "passes"]

# Tokens of a sequence at most, but for a text that has more: the mask is as wide as it is high.
_MOST = 640

# How far logits may be from those of single texts, as a share; rounding is far below, and a model
# that takes no such mask far above.
_CLOSE, _CLOSE_HALF = 1e-3, 3e-2

_known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class Packed:
    """Texts in one sequence.

    Args:
        texts: Tokens of each, at least one.
        counts: How many of the last places of each count.

    Attributes:
        tokens: int64, shape (1, tokens).
        positions: Of each in its text, int64, shape (1, tokens).
        columns: Where the places that count are: of the first text, the second, and so on.
    """

    def __init__(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        self._branches: list[int] = []  # which run a token belongs to
        self._parents: list[int] = []  # and which it goes on from; -1 for none
        tokens: list[int] = []
        positions: list[int] = []
        columns: list[list[int]] = [[] for _ in texts]
        branch = 0

        def put(run: Sequence[int], begun: int, parent: int) -> list[int]:
            nonlocal branch
            start = len(tokens)
            tokens.extend(run)
            positions.extend(range(begun, begun + len(run)))
            self._branches.extend([branch] * len(run))
            self._parents.extend([parent] * len(run))
            branch += 1
            return list(range(start, start + len(run)))

        for family in families(texts, 2):
            members = [texts[number] for number in family]
            most = min(len(texts[number]) - counts[number] for number in family)
            shared, parent = begun_alike(members, most, 2), -1
            if shared:
                parent = branch
                put(members[0][:shared], 0, -1)
            for number in family:
                places = put(texts[number][shared:], shared, parent)
                columns[number] = places[len(places) - counts[number] :]
        self.tokens, self.positions = torch.tensor([tokens]), torch.tensor([positions])
        self.columns = torch.tensor([place for each in columns for place in each])

    def mask(self, dtype: torch.dtype) -> Tensor:
        """0 where a token (rows) sees another (columns), else the least number of a dtype.

        Returns:
            Shape (1, 1, tokens, tokens).
        """
        branches, parents = torch.tensor(self._branches), torch.tensor(self._parents)
        order = torch.arange(len(branches))
        sees = (branches[:, None] == branches[None]) & (order[:, None] >= order[None])
        sees |= parents[:, None] == branches[None]
        return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[
            None, None
        ]


def passes(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the texts, by sequence."""
    sequences: list[list[int]] = [[]]
    used = 0
    for family in families(texts, 2):
        members = [texts[number] for number in family]
        shared, begun = begun_alike(members, min(map(len, members)) - 1, 2), False
        for number in family:
            size = len(texts[number]) - (shared if begun else 0)
            if sequences[-1] and used + size > _MOST:
                sequences.append([])
                used, size = 0, len(texts[number])
            sequences[-1].append(number)
            used, begun = used + size, True
    return sequences if sequences[-1] else []


def packed(model: Any, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> dict[str, Any]:
    """Keyword arguments for a forward pass, and ``columns``, the positions to read."""
    sequence = Packed(texts, counts)
    parameter = next(model.parameters())
    return {
        "input_ids": sequence.tokens.to(parameter.device),
        "position_ids": sequence.positions.to(parameter.device),
        "attention_mask": sequence.mask(_dtype(model)).to(parameter.device),
        "use_cache": False,
        "columns": sequence.columns.to(parameter.device),
    }


def _dtype(model: Any) -> torch.dtype:
    embedding: torch.dtype = model.get_input_embeddings().weight.dtype
    return embedding


def packs(model: Any) -> bool:
    """Whether a model heeds such masks and positions; tried once for each."""
    if model not in _known:
        _known[model] = keeps_all(model) and _heeds(model)
    return _known[model]


@torch.no_grad()
def _heeds(model: Any) -> bool:
    was_training = model.training
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    begun = [(7 * n + 3) % vocabulary for n in range(14)]
    texts = [[*begun, *((11 * n + m) % vocabulary for n in range(m))] for m in (1, 2, 4)]
    texts.append([(5 * n + 1) % vocabulary for n in range(6)])
    counts = [1] * len(texts)
    try:
        model.eval()
        given = packed(model, texts, counts)
        columns = given.pop("columns")
        device = given["input_ids"].device
        with in_halves(model):
            packed_logits = model(**given).logits[0, columns]
            alone = [model(input_ids=torch.tensor([text], device=device)) for text in texts]
        lone = torch.cat([each.logits[0, -1:] for each in alone]).double()
    except Exception:  # whatever a model says to what it does not know
        return False
    finally:
        model.train(was_training)
    # By what it says, not by what it is stored in: under autocast the two differ.
    close = _CLOSE if packed_logits.dtype == _dtype(model) == torch.float32 else _CLOSE_HALF
    return bool((packed_logits.double() - lone).norm() <= close * lone.norm())


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
