"""Options by the panel of ``--help-all`` that they stand in; all are ``typer.Option``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import typer

__all__ = [
    "fit_option",
    "machine_option",
    "output_option",
    "panel",
    "subspace_option",
    "tensor_option",
    "training_option",
]


def panel(title: str) -> Callable[..., Any]:
    """``typer.Option`` for options of one panel."""
    return partial(typer.Option, rich_help_panel=title)


tensor_option = panel("Which tensors")
fit_option = panel("How the inputs must fit")
subspace_option = panel("Subspaces")
training_option = panel("Training")
output_option = panel("The output")
machine_option = panel("The machine")
