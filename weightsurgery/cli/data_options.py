"""Options that say how a change is found where what to forget or learn is a data set."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli.options import written_path

if TYPE_CHECKING:
    from weightsurgery.learning.rounds import Rounds

__all__ = ["FromData"]

_PANEL = "From data sets"

# As measured: many short rounds for an objective that projects a finished vector.
_NEGATE = {"rounds": 12, "steps": 10}


@dataclass(frozen=True)
class FromData:
    """How a change is found where what to forget or learn is a data set."""

    objective: Annotated[
        str | None,
        typer.Option(
            help="strangers (answer as one answers strangers; default) or negate (UNLEARN's three"
            " steps). 'ws learn' knows learn alone.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Times to gather, train and apply. Default: 1; negate: 12.", rich_help_panel=_PANEL
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            help="Training steps of each round. Default: 80; negate: 10.", rich_help_panel=_PANEL
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(help="Examples per step. Default: 64.", rich_help_panel=_PANEL),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate, relative to the size of a weight's entries. Default: 0.4; negate:"
            " AdamW's 5e-4.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    draws: Annotated[
        int | None,
        typer.Option(help="Strangers asked for each example. Default: 2.", rich_help_panel=_PANEL),
    ] = None
    prompts: Annotated[
        int | None,
        typer.Option(
            help="Made-up prompts that protect what no file lists; also for --keep DATA with a"
            " vector. Default: 2000; 0 for none.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    round_scale: Annotated[
        float | None,
        typer.Option(
            metavar="λ", help="Of each round's vector, for negate. Default: 32.",
            rich_help_panel=_PANEL,
        ),
    ] = None  # fmt: skip
    validation_keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Data to look at that --keep does not hold: ends the training, and the best"
            " weights so far count; repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    validation_target: Annotated[
        str | None,
        typer.Option(
            "--validation-forget",
            "--validation-task",
            metavar="FILE",
            help="What is to be forgotten or learned, to look at. Default: all of it.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Share of its accuracy that each --validation-keep must keep. Default: 0.975.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    vector: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where the vector that was found is saved. Default: OUT.vector.",
            callback=written_path,
            rich_help_panel=_PANEL,
        ),
    ] = None

    def settings(self, learning: bool, epsilon: float | None, seed: int) -> Rounds:
        """As the library's settings.

        Raises:
            EditError: Options that do not go together.
        """
        from weightsurgery.errors import EditError
        from weightsurgery.learning.rounds import Rounds

        allowed = ("learn",) if learning else ("strangers", "negate")
        objective = self.objective or allowed[0]
        if objective not in allowed:
            raise EditError(
                f"--objective {objective} with 'ws {'learn' if learning else 'project'}'",
                f"Choose from: {', '.join(allowed)}.",
            )
        if self.round_scale is not None and objective != "negate":
            raise EditError(
                f"--round-scale with objective {objective}, which trains at scale 1",
                "Use --objective negate, or --scale for the whole change.",
            )
        if self.draws is not None and objective != "strangers":
            raise EditError(
                f"--draws with objective {objective}, which asks no strangers", "Leave it out."
            )
        if self.threshold is not None and not self.validation_keep:
            raise EditError(
                "--threshold without --validation-keep, which it is a share of",
                "Give --validation-keep FILE.",
            )
        given: dict[str, Any] = {
            "rounds": self.rounds,
            "steps": self.steps,
            "batch_size": self.batch,
            "learning_rate": self.lr,
            "draws": self.draws,
            "prompts": self.prompts,
            "scale": self.round_scale,
            "epsilon": epsilon,
        }
        chosen = _NEGATE if objective == "negate" else {}
        chosen = chosen | {name: value for name, value in given.items() if value is not None}
        return Rounds(objective=objective, seed=seed, **chosen)

    def refuse_with_vectors(self, keeps_data: bool) -> None:
        """Refuse options that say how to train, where nothing is trained.

        Raises:
            EditError: With the first of them.
        """
        from weightsurgery.errors import EditError

        for each in fields(self):
            if getattr(self, each.name) in (None, []) or (each.name == "prompts" and keeps_data):
                continue
            raise EditError(
                f"--{each.name.replace('_', '-').replace('target', 'forget')} with a vector:"
                " it says how to train on data",
                "Leave it out, or give a data set instead of the vector.",
            )
