"""The table of commands, and where errors become messages, out of memory too."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Annotated

import typer

from weightsurgery import __version__
from weightsurgery.algebra.devices import ran_out
from weightsurgery.cli import (
    attack,
    bench,
    compare,
    completions,
    demo,
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
from weightsurgery.errors import WeightSurgeryError

__all__ = ["app", "main", "out_of_memory"]

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
    "Look": (look.doctor, look.inspect, compare.diff, compare.subspace, look.overlap),
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


# What takes less memory, by its option, in the order in which it is worth trying.
_LESS = (
    ("--batch", "a smaller --batch"),
    ("--batch-size", "a smaller --batch-size"),
    ("--gradient-checkpointing", "--gradient-checkpointing"),
    ("--lora-rank", "--lora-rank"),
    ("--max-memory", "a smaller --max-memory"),
    ("--workers", "--workers 1"),
    ("--targets", "fewer matrices by --targets"),
)


def out_of_memory(
    problem: BaseException, app: typer.Typer, words: Sequence[str]
) -> tuple[str, str] | None:
    """What is wrong and what to do, where something ended for want of memory; None elsewhere.

    Args:
        problem: What was raised.
        app: The command line.
        words: That were typed, without the program's name.
    """
    if not ran_out(problem):
        return None
    text = " ".join(str(problem).split())
    on_gpu = "CUDA" in text or "GPU" in text
    name, options = _command(app, words)
    what = f"ws {name}: out of memory on the {'GPU' if on_gpu else 'processor'}{_figures(text)}"
    ways = [way for option, way in _LESS if option in options]
    if "--batch" in options:  # its threads only write what was trained
        ways = [way for way in ways if way != "--workers 1"]
    if on_gpu and "--device" in options:
        ways.append("--device cpu")
    remedy = f"Try {_either(ways)}." if ways else "Free some memory, or take a larger machine."
    if "--dry-run" in options:
        remedy += " --dry-run says what will be held."
    return what, remedy


def _figures(text: str) -> str:
    """How much was requested and how much is free, as far as the message says."""
    request = re.search(r"[Tt]ried to allocate ([\d.,]+ ?\w+)", text)
    capacity = re.search(r"total capacity of ([\d.,]+ \w+) of which ([\d.,]+ \w+) is free", text)
    text = f": {request[1]} were asked for" if request else ""
    if request and capacity:
        text += f", {capacity[2]} of {capacity[1]} are free"
    return text


def _either(ways: Sequence[str]) -> str:
    *most, last = ways
    return f"{', '.join(most)} or {last}" if most else last


def _command(app: typer.Typer, words: Sequence[str]) -> tuple[str, Collection[str]]:
    """The name of the command that was typed, and the options that it has."""
    names, command = [], typer.main.get_command(app)
    for word in words:
        below = getattr(command, "commands", {})
        if word not in below:
            break
        names.append(word)
        command = below[word]
    return " ".join(names), {option for param in command.params for option in param.opts}
