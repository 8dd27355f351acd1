"""A step's batch to keep, shared out to its micro-steps and processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsurgery.learning.data import IGNORED
from weightsurgery.learning.unlearners.batch_outputs import BatchTotals

__all__ = ["KeepBatch", "share_out", "silent"]


@dataclass(frozen=True)
class KeepBatch:
    """The share of a step's batch to keep that one pass reads.

    Attributes:
        batch: Tokens, attention mask and labels, each (rows, tokens).
        whole: How much the step has of it.
    """

    batch: Mapping[str, Tensor]
    whole: BatchTotals


def silent(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first row of a batch without labels: something to pass that does not count."""
    first = {name: batch[name][:1] for name in ("input_ids", "attention_mask")}
    return {**first, "labels": torch.full_like(batch["labels"][:1], IGNORED)}


def share_out(
    batch: Mapping[str, Tensor], passes: int, micro: int, place: tuple[int, int]
) -> list[list[KeepBatch]]:
    """The shares of a step's batch to keep that each micro-step of one process reads.

    Args:
        batch: Of the whole step, the same in all processes.
        passes: Micro-steps of a full step: what each holds of the batch is sized by it.
        micro: Micro-steps of this one. Where they are fewer, the last one has more shares.
        place: Number of the process, from 0, and of processes.

    Returns:
        Per micro-step its shares, at least one each. Where there are fewer rows than passes, a
        share may be one row without a label.
    """
    process, processes = place
    whole, count = BatchTotals.of(batch), batch["input_ids"].shape[0]
    passes = max(passes, micro)
    shares: list[list[KeepBatch]] = [[] for _ in range(micro)]
    for number in range(passes):
        slot, slots = number * processes + process, passes * processes
        rows = slice(slot * count // slots, (slot + 1) * count // slots)
        share = shares[min(number, micro - 1)]
        if rows.start < rows.stop:
            share.append(KeepBatch(_cut(batch, rows), whole))
    return [share or [KeepBatch(silent(batch), whole)] for share in shares]


def _cut(batch: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some rows, without columns that only pad them."""
    width = int(batch["attention_mask"][rows].sum(1).max())
    return {name: value[rows, :width] for name, value in batch.items()}
