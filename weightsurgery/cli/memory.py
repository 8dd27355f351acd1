"""Out of memory, on a GPU or on the processor, as an error like any other."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import typer

from weightsurgery.algebra.devices import ran_out

__all__ = ["out_of_memory"]

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
