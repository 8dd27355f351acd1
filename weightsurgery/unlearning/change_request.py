"""What a system that forgets from data is given, whatever it does with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.learning.data import Example
from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase
from weightsurgery.learning.settings import Training
from weightsurgery.progress import Progress

__all__ = ["ChangeRequest"]


@dataclass(frozen=True)
class ChangeRequest:
    """A request to forget, with the model in memory.

    A system takes it and returns ``W' − W`` by parameter; the model is as before then, to the bit.

    Attributes:
        model: Float32, on the device to work on.
        tokenizer: Its tokenizer.
        names: The parameters that may change, in the model's order.
        forget: What to forget; at least one.
        keep: What to keep; may be empty.
        unseen: What the model never saw, for systems that measure by it; may be empty.
        training: How to train.
        settings: The system's own, by name; every one of them.
        lora_rank: Train a LoRA adapter of this rank; None to train in full.
        chosen: Whether ``names`` were chosen by hand. If not, a system that trains fewer of them
            by its own lights does so.
        progress: Called as ``progress(text, done, total)``.
        workspace: Where a system that can go on after a kill may keep what that takes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...]
    forget: Sequence[Example]
    keep: Sequence[Example] = ()
    unseen: Sequence[Example] = ()
    training: Training = field(default_factory=Training)
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    chosen: bool = False
    progress: Progress | None = None
    workspace: Path | None = None
