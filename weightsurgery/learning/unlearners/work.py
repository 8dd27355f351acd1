"""What an unlearner prepares itself with: the model, the data, and helper models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsurgery.learning.data import IGNORED, Collator, Encoded, Example
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase
from weightsurgery.learning.settings import Training
from weightsurgery.learning.sharding import called_with, pieces_of
from weightsurgery.learning.stages import encode_rows, held_values, run_stage, set_values
from weightsurgery.learning.training import EncodedRows
from weightsurgery.learning.unlearners.losses import kl
from weightsurgery.progress import Progress

__all__ = ["Preparation"]


@dataclass
class Preparation:
    """The model and data that an unlearner prepares itself with.

    Attributes:
        model: The model before, with its adapter where one is trained; restored by who lends it.
        tokenizer: Its tokenizer.
        stage: The parameters that are trained.
        forget: What to forget.
        keep: What to keep.
        unseen: What the model never saw.
        training: Settings of the unlearner's training.
        settings: Settings of the method.
        device: Where.
        helpers: How many models are trained before the last.
        progress: See :func:`weightsurgery.learning.training.train_stage`.
        workspace: Where what is finished is kept for a run that goes on after a kill, if anywhere.
        notes: Figures of the preparation for the record.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    stage: Stage
    forget: Sequence[Example]
    keep: Sequence[Example]
    unseen: Sequence[Example]
    training: Training
    settings: Any
    device: torch.device
    collate: Collator
    helpers: int = 0
    progress: Progress | None = None
    workspace: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    _trained: int = 0

    @property
    def plain(self) -> PreTrainedModel:
        """The model as transformers knows it, an adapter inside."""
        inner: PreTrainedModel = getattr(self.model, "get_base_model", lambda: self.model)()
        return inner

    def rows(self, examples: Sequence[Example]) -> list[Encoded]:
        """Examples as tokens."""
        return encode_rows(self.plain, self.tokenizer, examples, self.training.max_length)

    def current_values(self) -> dict[str, Tensor]:
        """The trained parameters as they are now, on the device they are on."""
        return pieces_of(self.model, self.stage.parameters)

    def finetuned(
        self, name: str, examples: Sequence[Example], steps: int, rate: float
    ) -> dict[str, Tensor]:
        """The trained parameters after a fine-tuning on examples; the model is as before.

        Args:
            name: Of the helper, for messages.
            examples: What it learns.
            steps: Optimiser steps, of batches as large as the unlearner's.
            rate: AdamW's learning rate, constant.
        """
        before = held_values(self.model, self.stage.parameters)
        training = replace(self.training, steps=steps, learning_rate=rate, warmup=0, extra={})
        try:
            trained = run_stage(
                self.model,
                Stage(name, self.stage.parameters),
                EncodedRows(self.rows(examples), self.collate),
                training,
                self.workspace and self.workspace / f"helper-{self._trained}.safetensors",
                device=self.device,
                place=(self._trained, self.helpers + 1),
                progress=self.progress,
            )
            self._trained += 1
            self.notes[name] = {
                "steps": trained.steps,
                "first_loss": trained.first_loss,
                "last_loss": trained.last_loss,
            }
            return self.current_values()
        finally:
            set_values(self.model, before)

    @torch.no_grad()
    def divergence(
        self,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        examples: Sequence[Example],
    ) -> float:
        """``KL(first ‖ second)`` per token of the completions, in nats, over all examples.

        Args:
            first: Values of the trained parameters of one model.
            second: Those of another.
            examples: At least one.
        """
        self.model.eval()
        rows, total, count = self.rows(examples), 0.0, 0
        size = self.training.batch_size
        for start in range(0, len(rows), size):
            batch = {
                k: v.to(self.device) for k, v in self.collate(rows[start : start + size]).items()
            }
            counted = batch.pop("labels")[:, 1:] != IGNORED
            inputs: dict[str, Any] = {**batch, "use_cache": False}
            logits = [
                called_with(self.model, values, inputs).logits[:, :-1][counted]
                for values in (first, second)
            ]
            positions = int(counted.sum())
            total += float(kl(logits[0], logits[1], positions)) * positions
            count += positions
        return total / count
