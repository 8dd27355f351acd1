"""The table of commands, and where errors become messages."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from weightsurgery import __version__
from weightsurgery.cli import (
    attack,
    bench,
    compare,
    completions,
    demo,
    doctor,
    edit,
    export,
    identify,
    look,
    push,
    recipe,
    score,
    sweep,
    unlearn,
)
from weightsurgery.cli.console import error, listen, say_interrupted
from weightsurgery.cli.helped import Command, Group
from weightsurgery.cli.memory import out_of_memory
from weightsurgery.errors import WeightSurgeryError

__all__ = ["app", "main"]

app = typer.Typer(
    name="ws",
    cls=Group,
    help="Edit model checkpoints by weight arithmetic. CKPT, BASE: a directory, or"
    " org/name\\[@revision]. VECTOR: a fine-tune of BASE, an adapter, a saved change.\n\n"
    "Example:  ws project ./model --forget facts.jsonl -o ./edited",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)

for panel, commands in {
    "Look": (doctor.doctor, look.inspect, compare.diff, compare.subspace, look.overlap),
    "Edit": (
        identify.identify,
        edit.negate,
        edit.add,
        edit.project,
        edit.learn,
        unlearn.unlearn,
        sweep.sweep,
        recipe.run,
    ),
    "Check and share": (
        completions.try_,
        score.evaluate,
        look.report,
        look.verify,
        export.export,
        push.push,
        bench.bench,
        demo.demo,
    ),
}.items():
    for command in commands:
        app.command(command.__name__.rstrip("_"), cls=Command, rich_help_panel=panel)(command)
app.add_typer(attack.app, name="attack", rich_help_panel="Check and share")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weightsurgery {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    # What records name; a recipe puts the line that it stands for in its place.
    context.obj = ["ws", *sys.argv[1:]]


def _terminated(number: int, frame: object) -> None:
    """What a scheduler sends ends a command as Ctrl-C does; sent twice, at once."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def main() -> None:
    """Run ``ws``: exit 0 done, 1 our error, 2 usage, 130 or 143 ended; bugs show a traceback."""
    alone = "RANK" not in os.environ  # processes that wait for each other must go at once
    if alone:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        _run()
    except KeyboardInterrupt:  # where the library of commands does not look for it
        code: str | int | None = 130
    except SystemExit as stopped:
        code = stopped.code
    else:
        code = 0
    if code == 130:
        say_interrupted()
        if alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            code = 143
    sys.exit(code)


def _run() -> None:
    # NumPy's products: tensors are spread over threads already. torch has settings of its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # transformers loads it where it is installed, whether or not it is used, and it complains.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    listen()
    try:
        app(prog_name="ws")
    except WeightSurgeryError as problem:
        error(problem.what, problem.remedy)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as problem:
        message = out_of_memory(problem, app, sys.argv[1:])
        if message is None:
            raise
        error(*message)
        sys.exit(1)
