"""What the commands share that make embedded worlds: which one, and what it takes to train it."""

from __future__ import annotations

from typing import Annotated

import typer

from weightsurgery.cli.helped import among
from weightsurgery.deferred import need

# Light: the recipes alone, not what builds a world by them.
from weightsurgery.lab.world.recipe import VARIANTS

__all__ = ["Variant", "need_training"]

Variant = Annotated[
    str,
    typer.Option(
        autocompletion=among(*VARIANTS),
        metavar="NAME",
        help=f"Variant of the world: {', '.join(VARIANTS)}. With shared-names, names do not tell"
        " the twins apart; paraphrased has each question in two wordings, and styled those about"
        " people in a second style as well; narrow ones are smaller models, and small ones take"
        " seconds.",
    ),
]
"""The name of a variant of the world."""


def need_training(what: str) -> None:
    """Refuses to begin where worlds cannot be trained.

    Args:
        what: Needs it, as in ``"the demo trains a small model"``.

    Raises:
        WeightSurgeryError: A library is not installed.
    """
    need(what, "transformers", "accelerate", extra="demo")
