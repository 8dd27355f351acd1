"""Training on an unlearner's loss: a step and its parts, and when to end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from typing_extensions import override

from weightsurgery.learning.placement import any_order
from weightsurgery.learning.sharding import called_with
from weightsurgery.learning.trainer import StageTrainer
from weightsurgery.learning.unlearners.base import Unlearner
from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs, BatchTotals
from weightsurgery.learning.unlearners.shares import KeepBatch, share_out, silent

__all__ = ["UnlearningTrainer"]


class UnlearningTrainer(StageTrainer):
    """A Trainer whose loss is an unlearner's, of a batch to forget and perhaps a batch to keep.

    A step is one batch of each, over all its micro-steps and processes; means are over all of it.
    So gradients accumulated, or averaged over processes, are those of the whole batch at once, but
    for rounding and dropout.

    Args:
        unlearner: Says the loss, and when to end.
    """

    def __init__(self, unlearner: Unlearner, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Losses here are shares of a step's: nothing is left to divide by.
        self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, True
        self.unlearner = unlearner
        unlearner.trainer = self
        self.add_callback(_Stop(unlearner))

    def get_batch_samples(self, epoch_iterator, num_batches, device):  # type: ignore[no-untyped-def]
        """See Trainer; a step's batches, each with its share of what to keep."""
        rows = islice(self.unfilled_rows(epoch_iterator), num_batches)
        batches = [self._prepare_inputs(batch) for batch in rows]
        if not batches:
            return batches, None
        counts = torch.stack([BatchTotals.of(batch).counts for batch in batches]).sum(0)
        whole = BatchTotals(*self.sum_over_processes(counts))
        shares: list[list[KeepBatch]] | list[list[None]] = [[None]] * len(batches)
        if self.retain is not None:
            keep = self._prepare_inputs(self.retain.batch((self.state.global_step, 0, 0)))
            place = self.accelerator.process_index, self.accelerator.num_processes
            shares = share_out(keep, self.args.gradient_accumulation_steps, len(batches), place)
        self.unlearner.before_step(batches, whole)
        return [
            {**batch, "whole": whole, "shares": parts}
            for batch, parts in zip(batches, shares, strict=True)
        ], None

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer; a share of what to keep that is more than one comes in several passes."""
        *more, last = inputs.pop("shares")
        total: Any = 0
        for share in more:
            with self.accelerator.no_sync(model):
                total += super().training_step(model, {**inputs, **silent(inputs), "share": share})
        return total + super().training_step(model, {**inputs, "share": last})

    @override
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        share: KeepBatch | None = inputs["share"]
        # One pass for both: data-parallel training allows no more than one before a backward pass.
        batch = inputs if share is None else self._joined(inputs, share.batch)
        outputs = self.model_outputs(model, batch)
        count = inputs["input_ids"].shape[0]
        forget = _part(outputs, inputs, slice(0, count), inputs["whole"])
        keep = None
        if share is not None:
            keep = _part(outputs, share.batch, slice(count, None), share.whole)
        # The mean over processes, which data-parallel training takes, is then the sum.
        loss = self.unlearner.loss(forget, keep) * self.accelerator.num_processes
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def _joined(self, inputs: Mapping[str, Any], keep: Mapping[str, Tensor]) -> dict[str, Any]:
        assert self.retain is not None
        return self.retain.join(inputs, keep)

    def model_outputs(self, model: Any, batch: Mapping[str, Tensor]) -> BatchOutputs:
        """Outputs of the model that is trained for a batch."""
        hidden = self.unlearner.needs_hidden_states
        out = model(**_inputs(batch, hidden))
        return BatchOutputs(batch, out.logits, tuple(out.hidden_states or ()) if hidden else ())

    @torch.no_grad()
    def reference_outputs(
        self, values: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> BatchOutputs:
        """Outputs of a frozen reference for a batch, in evaluation mode.

        Args:
            values: Its values of the trained parameters; the others it shares.
            batch: As a step has it.
        """
        model: Any = self.model
        model.eval()
        try:
            reference = partial(called_with, model, values)
            return self.model_outputs(lambda **inputs: reference(inputs), batch)
        finally:
            model.train()

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total: Tensor = self.accelerator.reduce(value.detach(), "sum")
        return total

    def mean_over_processes(self, value: float) -> float:
        """The mean of a number over all processes, so that they end together."""
        mine = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        return float(self.accelerator.reduce(mine, "mean"))


def _inputs(batch: Mapping[str, Tensor], hidden: bool) -> dict[str, Any]:
    """A batch as a model takes it: without labels, or it would work out a loss of its own."""
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {**inputs, "use_cache": False, "output_hidden_states": hidden}


def _part(
    outputs: BatchOutputs, inputs: Mapping[str, Tensor], rows: slice, whole: BatchTotals
) -> BatchOutputs:
    """The part of the outputs for a joined batch that belongs to one of the two batches."""
    width = inputs["input_ids"].shape[1]
    hidden = tuple(each[rows, :width] for each in outputs.hidden)
    return BatchOutputs(inputs, outputs.logits[rows, :width], hidden, whole)


class _Stop(TrainerCallback):
    """Ends training when a method says so; nothing is saved before that is known.

    A run that goes on from a saved point would not call the method again.
    """

    def __init__(self, unlearner: Unlearner) -> None:
        self.unlearner = unlearner
        self.due = False

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Called by Trainer after each step."""
        with any_order():
            ended = self.unlearner.after_step()
        if ended:
            control.should_training_stop = True
        self.due = control.should_save and float(state.epoch).is_integer()
        control.should_save &= not (self.due or control.should_training_stop)

    def on_epoch_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Called by Trainer after each pass over the data."""
        with any_order():
            ended = self.unlearner.after_epoch()
        if ended:
            control.should_training_stop = True
        control.should_save = self.due and not control.should_training_stop
