"""Options of training, named as the fields of the library's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from weightsurgery.cli.helped import among
from weightsurgery.cli.panels import training_option
from weightsurgery.cli.spread import given

__all__ = ["Optimise"]


@dataclass(frozen=True)
class Optimise:
    """How to train; each is a field of :class:`weightsurgery.learning.settings.Training`."""

    steps: Annotated[
        int | None,
        training_option(
            help="Training steps; 'ws identify' takes so many of each stage: a layer, or all of it"
            " in mode joint."
        ),
    ] = None
    epochs: Annotated[float | None, training_option(help="Instead: passes over the data.")] = None
    learning_rate: Annotated[
        float | None,
        training_option("--lr", help="Learning rate of AdamW, constant after --warmup."),
    ] = None
    batch_size: Annotated[
        int | None, training_option("--batch", help="Examples per process and micro-step.")
    ] = None
    accumulation: Annotated[
        int | None, training_option("--accumulate", help="Micro-steps per step.")
    ] = None
    warmup: Annotated[
        int | None, training_option(help="Steps over which the learning rate rises.")
    ] = None
    weight_decay: Annotated[float | None, training_option(help="Weight decay of AdamW.")] = None
    max_length: Annotated[
        int | None,
        training_option(
            metavar="TOKENS",
            help="Split longer examples into windows. Default: at what the model reads.",
        ),
    ] = None
    precision: Annotated[
        str | None,
        training_option(
            autocompletion=among("learning.settings:PRECISIONS"),
            help="Precision of the training's arithmetic: float32, bfloat16 or float16. Trained"
            " weights and the vector are float32 always.",
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool, training_option(help="Less memory for activations, a third more work.")
    ] = False
    save_every: Annotated[
        int | None,
        training_option(
            metavar="STEPS",
            help="Steps between points that a killed run goes on from, and between looks at"
            " validation data. Default: 500.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given, by name.

        Raises:
            EditError: Steps and epochs both.
        """
        from weightsurgery.errors import EditError

        if self.steps is not None and self.epochs is not None:
            raise EditError("both --steps and --epochs", "Give one of them.")
        return given(self)
