"""Unlearning by training on another loss: one Trainer subclass each, and the table of them.

==========================  ====================================================================
``gradient-ascent``         ``CE(forget)`` maximised (Jang et al. 2023, arXiv 2210.01504, KUL)
``gradient-difference``     the same, and ``CE(keep)`` minimised (Liu et al. 2022, arXiv
                            2203.12817; the control of TOFU, arXiv 2401.06121)
==========================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.retain import Retain
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import encode_rows, set_values, values_of
from weightsurgery.learning.training import Rows, StageTrainer, isolated, train_stage

__all__ = ["UNLEARNERS", "GradientAscent", "GradientDifference", "unlearn"]


class GradientAscent(StageTrainer):
    """``L = −CE(forget)``."""

    needs_keep = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer."""
        loss, outputs = Trainer.compute_loss(self, model, inputs, True, num_items_in_batch)
        loss = -loss
        return (loss, outputs) if return_outputs else loss


class GradientDifference(GradientAscent):
    """``L = −CE(forget) + w · CE(keep)``."""

    needs_keep = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer."""
        loss, outputs = super().compute_loss(  # type: ignore[no-untyped-call]
            model, inputs, True, num_items_in_batch
        )
        assert self.retain is not None
        place = (self.state.global_step, 0, self.args.process_index)
        keep = self._prepare_inputs(self.retain.batch(place))
        kept: Any = Trainer.compute_loss(self, model, keep)
        loss = loss + self.retain.weight * kept
        return (loss, outputs) if return_outputs else loss


UNLEARNERS: Mapping[str, type[GradientAscent]] = {
    "gradient-ascent": GradientAscent,
    "gradient-difference": GradientDifference,
}


def unlearn(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Example],
    keep: Sequence[Example],
    training: Training,
    *,
    selection: Selection | None = None,
    after_step: Callable[[int], bool] = lambda step: False,
    keep_weight: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Trains with one of :data:`UNLEARNERS`; the model is as before in the end, to the bit.

    Args:
        name: Which.
        model: Float32.
        tokenizer: Its tokenizer.
        forget: What to forget.
        keep: What to keep; not used by all.
        training: How.
        selection: Which parameters to train; by default all linear layers.
        after_step: Called with the number of steps taken; true ends the training.
        keep_weight: ``w``.

    Returns:
        Parameter → its change, float32 on the CPU.

    Raises:
        EditError: An unknown name, or no keep examples where they are needed.
        NonFiniteError: The loss or a weight is NaN or infinite, as gradient ascent ends if it
            goes on long enough.
    """
    if name not in UNLEARNERS:
        raise EditError(f"method {name!r}", f"Choose one of: {', '.join(UNLEARNERS)}.")
    kind = UNLEARNERS[name]
    if kind.needs_keep and not keep:
        raise EditError(f"{name} without examples to keep", "Give some.")
    names = list((selection or Selection("all-linear")).resolve(entries_of(model)))
    thawed = {each: p.requires_grad for each, p in model.named_parameters()}
    before, was_training = values_of(model, names), model.training
    collate = Collator(padding_token(tokenizer))
    try:
        with isolated(), quiet():
            retain = None
            if kind.needs_keep:
                rows = encode_rows(model, tokenizer, keep, training.max_length)
                retain = Retain(rows, collate, keep_weight, training.batch_size, training.seed)
            train_stage(
                model,
                Stage(name, tuple(names)),
                Rows(encode_rows(model, tokenizer, forget, training.max_length), collate),
                training,
                device=model.device,
                retain=retain,
                enough=after_step,
                kind=kind,
            )
        after = values_of(model, names)
        return {each: after[each].sub_(before[each]) for each in names}
    finally:
        set_values(model, before)
        model.train(was_training)
        for each, parameter in model.named_parameters():
            parameter.requires_grad_(thawed[each])
