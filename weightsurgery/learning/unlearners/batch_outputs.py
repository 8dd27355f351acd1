"""A model's outputs for a batch, and means over it, or over a step of which it is a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsurgery.learning.data import IGNORED
from weightsurgery.learning.unlearners.losses import completion_nll

__all__ = ["BatchOutputs", "BatchTotals"]


@dataclass(frozen=True)
class BatchTotals:
    """Counts that means are taken over; int64 scalars, on the batch's device.

    Attributes:
        rows: Completions.
        tokens: Of all completions together.
        positions: Tokens of all texts, prompts included.
    """

    rows: Tensor
    tokens: Tensor
    positions: Tensor

    @property
    def counts(self) -> Tensor:
        """All three, shape (3,)."""
        return torch.stack((self.rows, self.tokens, self.positions))

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> BatchTotals:
        """That of a batch; a row without a label only fills it up."""
        counted = inputs["labels"][:, 1:] != IGNORED
        real = counted.any(1)
        return cls(real.sum(), counted.sum(), inputs["attention_mask"][real].sum())


@dataclass(frozen=True)
class BatchOutputs:
    """A model's outputs for a batch.

    Attributes:
        inputs: The batch: tokens, attention mask and labels, each (rows, tokens). A row without a
            label only fills the batch up, and is left out of everything below.
        logits: Shape (rows, tokens, vocabulary).
        hidden: Hidden states: the input of each layer and the output of the last, each (rows,
            tokens, hidden), where they are needed.
        part_of: What means are over: all of a step, of which the batch is the part that one
            process sees in one micro-step, so that all parts together are the step's mean. None:
            the batch is all there is.
    """

    inputs: Mapping[str, Tensor]
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    part_of: BatchTotals | None = None

    @property
    def whole(self) -> BatchTotals:
        """Counts that means are taken over."""
        return self.part_of or BatchTotals.of(self.inputs)

    @property
    def real(self) -> Tensor:
        """Which rows do not only fill the batch up, bool, shape (rows,)."""
        return (self.inputs["labels"][:, 1:] != IGNORED).any(1)

    @property
    def counted(self) -> Tensor:
        """Logits whose next token belongs to a completion, shape (positions, vocabulary)."""
        return self.logits[:, :-1][self.inputs["labels"][:, 1:] != IGNORED]

    @property
    def wanted(self) -> Tensor:
        """The tokens of the completions, which those logits are for, int64, shape (positions,)."""
        labels = self.inputs["labels"][:, 1:]
        return labels[labels != IGNORED]

    @property
    def nll(self) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each completion and its number of tokens, each (rows,)."""
        nll, tokens = completion_nll(self.logits, self.inputs["labels"])
        return nll[self.real], tokens[self.real]

    @property
    def cross_entropy(self) -> Tensor:
        """The mean over all tokens of all completions."""
        return self.nll[0].sum() / self.whole.tokens

    def states(self, layer: int) -> Tensor:
        """A layer's output at every token, shape (positions, hidden)."""
        mask = self.inputs["attention_mask"].bool() & self.real[:, None]
        return self.hidden[layer + 1][mask]
