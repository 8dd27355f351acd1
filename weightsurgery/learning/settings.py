"""The settings of a training: a few of ours, and whatever else transformers' Trainer takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from weightsurgery.errors import EditError
from weightsurgery.suggestions import one_of

__all__ = ["PRECISIONS", "Training"]

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Training:
    """Settings of AdamW at a constant learning rate after a warm-up, gradients clipped at 1.

    Attributes:
        steps: Optimiser steps of each stage; None to count in epochs.
        epochs: Passes over the data of each stage, if ``steps`` is None.
        learning_rate: Of AdamW.
        batch_size: Examples per process and micro-step; a step sees ``batch_size · accumulation ·
            processes``.
        accumulation: Micro-steps per step.
        warmup: Steps over which the learning rate rises.
        weight_decay: Of AdamW.
        max_length: Tokens beyond which an example is split into windows; None for what the model
            reads at once.
        seed: Of order, dropout, adapters and, in mode ``literal``, of the first weights.
        precision: Of the arithmetic: ``"float32"``, ``"bfloat16"`` or ``"float16"``. The weights
            that are trained are float32 always.
        gradient_checkpointing: Compute activations again instead of holding them.
        save_every: Steps between points from which a killed run goes on, and between looks at
            the validation data.
        patience: Looks without a better validation loss after which a stage ends; None for none.
        extra: Further fields of ``transformers.TrainingArguments``.

    Raises:
        EditError: A value that makes no sense.
    """

    steps: int | None = None
    epochs: float = 3.0
    learning_rate: float = 1e-4
    batch_size: int = 8
    accumulation: int = 1
    warmup: int = 0
    weight_decay: float = 0.0
    max_length: int | None = None
    seed: int = 0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    save_every: int = 500
    patience: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EditError(f"precision {self.precision!r}", one_of(self.precision, PRECISIONS))
        for name in ("batch_size", "accumulation", "save_every", "steps", "max_length", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EditError(f"{_spoken(name)} {value}", "Give a whole number from 1.")
        for name in ("learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise EditError(f"{_spoken(name)} {getattr(self, name)}", "Give a number above 0.")
        for name in ("warmup", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise EditError(f"{_spoken(name)} {getattr(self, name)}", "Give a number from 0.")
        _check_extra(self.extra)


def _spoken(name: str) -> str:
    return name.replace("_", " ")


# What the training itself depends on, and what would write elsewhere.
_OURS = frozenset(
    {
        "bf16",
        "data_seed",
        "disable_tqdm",
        "do_eval",
        "do_train",
        "eval_steps",
        "eval_strategy",
        "fp16",
        "gradient_accumulation_steps",
        "activation_checkpointing",
        "gradient_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing_kwargs",
        "greater_is_better",
        "label_names",
        "learning_rate",
        "load_best_model_at_end",
        "log_level",
        "logging_first_step",
        "logging_nan_inf_filter",
        "logging_steps",
        "logging_strategy",
        "max_steps",
        "metric_for_best_model",
        "num_train_epochs",
        "output_dir",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "prediction_loss_only",
        "push_to_hub",
        "remove_unused_columns",
        "report_to",
        "restore_callback_states_from_checkpoint",
        "resume_from_checkpoint",
        "save_only_model",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "seed",
        "use_cpu",
        "warmup_steps",
        "weight_decay",
    }
)


def _check_extra(extra: Mapping[str, Any]) -> None:
    if not extra:
        return
    from transformers import TrainingArguments  # which takes seconds to import

    known = {each.name for each in fields(TrainingArguments)}
    for name in extra:
        if name not in known:
            raise EditError(
                f"trainer argument {name!r}: transformers.TrainingArguments has none of this name",
                "Check its spelling in the documentation of transformers.",
            )
        if name in _OURS or name.startswith("hub_"):
            raise EditError(
                f"trainer argument {name!r} is not free",
                "Use the option or setting of ours that stands for it.",
            )
