"""Options that every command has which writes an edited model: negate, add, project, learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from weightsurgery.cli.factors import Truncate
from weightsurgery.cli.options import Fit, Show, Store, Which, Work
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import machine_option

__all__ = ["Base", "Cluster", "EditOptions"]

Base = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint to edit.")]
Cluster = Annotated[
    str | None,
    machine_option(
        metavar="ray[://HOST:PORT]",
        help="Spread the work over a Ray cluster: the one in RAY_ADDRESS, this machine's, or one"
        " started for this run. Inputs and output lie on storage that its nodes share; --workers"
        " bounds the tasks under way.",
    ),
]


@dataclass(frozen=True)
class EditOptions:
    """How an edit is applied, stored and shown."""

    store: Store
    which: Which
    truncate: Truncate
    fit: Fit
    work: Work
    show: Show
    pages: Pages
    scale: Annotated[float, typer.Option(metavar="λ", help="Factor of the change.")] = 1.0
    cluster: Cluster = None
