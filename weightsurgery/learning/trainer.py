"""transformers' Trainer as stages need it: what it counts, reports and stops at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import torch
from transformers import TrainerCallback

from weightsurgery.errors import NonFiniteError
from weightsurgery.learning.data import IGNORED
from weightsurgery.learning.placement import any_order
from weightsurgery.learning.points_trainer import PointsTrainer
from weightsurgery.learning.retain import Retain
from weightsurgery.progress import Progress

__all__ = ["StageTrainer", "Steps", "Until"]


class StageTrainer(PointsTrainer):
    """Adds the loss on the keep data."""

    retain: Retain | None = None
    _micro = (-1, 0)

    def get_batch_samples(self, epoch_iterator, num_batches, device):  # type: ignore[no-untyped-def]
        """See Trainer; without rows that are there twice."""
        if self.model_accepts_loss_kwargs:  # others would divide by nothing
            epoch_iterator = self.unfilled_rows(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def unfilled_rows(self, batches: Iterator[dict[str, torch.Tensor]]) -> Iterator[dict[str, Any]]:
        """A step's batches, in which rows have no labels that only fill the last ones up.

        Where the data do not go round, the first examples come again so that every process has a
        whole batch: in one process they would count once.
        """
        size, processes = self._train_batch_size, self.accelerator.num_processes
        together, count = size * processes, len(cast(Sized, self.train_dataset))
        rounds = -(-count // together)
        steps = -(-rounds // self.args.gradient_accumulation_steps)
        first = self.state.global_step % steps * self.args.gradient_accumulation_steps
        alone = processes == 1 or self.args.dataloader_drop_last
        # A loop: `yield from` would end the epoch's iterator along with the step's.
        for number, batch in enumerate(batches, first):
            real = max(0, count - number * together - size * self.accelerator.process_index)
            if not alone and real < size:
                labels = batch["labels"].clone()
                # An example may be several rows, one after another.
                labels[real * (len(labels) // size) :] = IGNORED
                batch = {**batch, "labels": labels}
            yield batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer; with keep data, cross-entropy plus the weighted divergence."""
        if self.retain is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step, micro = self.state.global_step, 0
        if self._micro[0] == step:
            micro = self._micro[1] + 1
        self._micro = (step, micro)
        keep = self._prepare_inputs(self.retain.batch((step, micro, self.args.process_index)))
        both = self.retain.join(inputs, keep)
        loss, outputs = super().compute_loss(model, both, True, num_items_in_batch)
        divergence = self.retain.divergence(self.model, outputs.logits, keep)
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            divergence = divergence / self.current_gradient_accumulation_steps
        loss = loss + self.retain.weight * divergence
        return (loss, outputs) if return_outputs else loss


class Steps(TrainerCallback):
    """Reports every step, and stops at a loss that is no number."""

    def __init__(self, stage: str, place: tuple[int, int], progress: Progress | None) -> None:
        self.stage, self.place, self.progress = stage, place, progress

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Called by Trainer with each step's loss, after the step and before any checkpoint."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"{self.stage}: the loss is {loss} at step {state.global_step}",
                "Lower the learning rate, raise --warmup, or train with --precision float32 or"
                " bfloat16; at step 1, look for NaN in the checkpoint.",
            )
        if self.progress is not None:
            number, count = self.place
            done = number * state.max_steps + state.global_step
            text = f"{self.stage} ({number + 1} of {count}), loss {loss:.4f}"
            self.progress(text, done, count * state.max_steps)


class Until(TrainerCallback):
    """Ends training when it is enough."""

    def __init__(self, enough: Callable[[int], bool]) -> None:
        self.enough = enough

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Called by Trainer after each step."""
        with any_order():
            ended = self.enough(state.global_step)
        if ended:
            control.should_training_stop = True
