"""The command that says what can be done here: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.options import Show
from weightsurgery.cli.spread import options

__all__ = ["doctor"]


@options
def doctor(
    show: Show,
    ckpt: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="Say what commands would take of it.")
    ] = None,
) -> None:
    """Say what is installed, what this machine has, what commands take.

    Of CKPT headers alone are read, on the Hub too. The figures are those that --dry-run of each
    command gives. Exit code 1 where the commands that need no extra could not be run.

    Example:  ws doctor
    Example:  ws doctor ./model
    """
    from weightsurgery.procedures.doctor import diagnose
    from weightsurgery.report.doctor import doctor_tables

    diagnosis = diagnose(ckpt)
    console.result(show, diagnosis.document, lambda: doctor_tables(diagnosis))
    if not diagnosis.ready:
        raise typer.Exit(1)
