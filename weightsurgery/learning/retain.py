"""Holding a model to its base on keep data while it learns something else.

The retain-aware vector of MOX (arXiv 2602.06441): the loss is the cross-entropy on what is to be
learnt plus ``weight · KL(base ‖ current)`` on the completions of keep examples.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from weightsurgery.learning.data import IGNORED, Collator, Encoded
from weightsurgery.learning.sharding import called_with

__all__ = ["Retain", "divergence"]


def divergence(reference: Tensor, current: Tensor) -> Tensor:
    """``KL(reference ‖ current)`` in nats per position, over the whole vocabulary.

    Args:
        reference: Logits, shape (positions, vocabulary).
        current: Logits of the same shape.

    Returns:
        A float32 scalar: the mean over the positions.
    """
    expected = reference.float().log_softmax(-1)
    predicted = current.float().log_softmax(-1)
    return functional.kl_div(predicted, expected, log_target=True, reduction="batchmean")


class Retain:
    """The keep term of a loss.

    No second model is held: the base is the model itself with the original values of what is
    trained, or, for an adapter, without it.

    Args:
        rows: Keep examples; a batch of them is drawn for every micro-step.
        collate: Makes batches.
        weight: Factor of the divergence.
        batch_size: Examples per micro-step.
        seed: Of the draw.

    Attributes:
        originals: Base values of the parameters trained so far, by name; None for an adapter.
        weight: See above.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        collate: Collator,
        weight: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self._rows, self._collate, self.weight = rows, collate, weight
        self._count = min(batch_size, len(rows))
        self._seed = seed
        self.originals: dict[str, Tensor] | None = {}

    def batch(self, place: tuple[int, int, int]) -> dict[str, Tensor]:
        """The batch of a step, a micro-step and a process: the same in a run that was resumed."""
        draw = random.Random(f"{self._seed} {place}")
        return self._collate(
            [self._rows[i] for i in draw.sample(range(len(self._rows)), self._count)]
        )

    def join(self, inputs: Mapping[str, Any], keep: Mapping[str, Tensor]) -> dict[str, Any]:
        """One batch of both, in which the keep rows, the last ones, have no labels."""
        width = max(inputs["input_ids"].shape[1], keep["input_ids"].shape[1])
        fills = {
            "input_ids": self._collate.pad_token_id,
            "attention_mask": 0,
            "labels": IGNORED,
        }
        silent = {**keep, "labels": torch.full_like(keep["labels"], IGNORED)}
        return {
            name: torch.cat(
                [
                    functional.pad(part[name], (0, width - part[name].shape[1]), value=fill)
                    for part in (inputs, silent)
                ]
            )
            for name, fill in fills.items()
        }

    def divergence(self, model: Any, logits: Tensor, keep: Mapping[str, Tensor]) -> Tensor:
        """``KL(base ‖ current)`` on the tokens of the keep completions.

        Args:
            model: The model that is trained.
            logits: Its logits for the joined batch, shape (rows, tokens, vocabulary).
            keep: The keep batch.
        """
        counted = keep["labels"][:, 1:] != IGNORED
        rows, width = keep["labels"].shape
        current = logits[-rows:, : width - 1][counted]
        return divergence(self._reference(model, keep)[:, :-1][counted], current)

    @torch.no_grad()
    def _reference(self, model: Any, keep: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: keep[name] for name in ("input_ids", "attention_mask")}
        model.eval()  # the base has no dropout
        try:
            if self.originals is None:
                with model.disable_adapter():
                    logits: Tensor = model(**inputs, use_cache=False).logits
            else:
                logits = called_with(model, self.originals, {**inputs, "use_cache": False}).logits
        finally:
            model.train()
        return logits
