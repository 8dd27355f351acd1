"""Options that say how to train, of every command that does: named as the library names them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from weightsurgery.cli.helped import among

__all__ = ["Optimise"]

_PANEL = "Training"


@dataclass(frozen=True)
class Optimise:
    """How to train; each is a field of :class:`weightsurgery.learning.settings.Training`."""

    steps: Annotated[
        int | None,
        typer.Option(
            help="Training steps; 'ws identify' takes so many of each stage: a layer, or all of it"
            " in mode joint.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(help="Instead: passes over the data.", rich_help_panel=_PANEL),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--lr", help="Learning rate of AdamW, constant after --warmup.", rich_help_panel=_PANEL
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch", help="Examples per process and micro-step.", rich_help_panel=_PANEL
        ),
    ] = None
    accumulation: Annotated[
        int | None,
        typer.Option("--accumulate", help="Micro-steps per step.", rich_help_panel=_PANEL),
    ] = None
    warmup: Annotated[
        int | None,
        typer.Option(help="Steps over which the learning rate rises.", rich_help_panel=_PANEL),
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay of AdamW.", rich_help_panel=_PANEL)
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Split longer examples into windows. Default: at what the model reads.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            autocompletion=among("learning.settings:PRECISIONS"),
            help="Precision of the training's arithmetic: float32, bfloat16 or float16. Trained"
            " weights and the vector are float32 always.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Less memory for activations, a third more work.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    save_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            help="Steps between points that a killed run goes on from, and between looks at"
            " validation data. Default: 500.",
            rich_help_panel=_PANEL,
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
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: value for name, value in found.items() if value is not None and value is not False
        }
