"""The commands that try to bring back what was forgotten: attack relearn, attack quantize."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.helped import Command, Group, among
from weightsurgery.cli.options import Show
from weightsurgery.cli.panels import machine_option, panel
from weightsurgery.cli.score import Device, DeviceMap, Forget, Keep, Model, Scoring, check_installed
from weightsurgery.cli.spread import options

if TYPE_CHECKING:
    from weightsurgery.procedures.attacked import Attack

__all__ = ["app", "quantize", "relearn"]

app = typer.Typer(
    cls=Group,
    help="Does it stay forgotten? Attack it in memory, and score it again.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_option = panel("How it is attacked")

Against = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="A control that gets the same attack: a model that never knew, or the one before the"
        " edit.",
    ),
]


@options
def relearn(
    ckpt: Model,
    show: Show,
    how: Scoring,
    forget: Forget = None,
    keep: Keep = None,
    against: Against = None,
    steps: Annotated[int, _option(help="Optimiser steps (AdamW, all weights).")] = 40,
    learning_rate: Annotated[float, _option(help="Of these steps; large models want less.")] = 5e-4,
    batch_size: Annotated[
        int, _option(help="Examples per step, and per forward pass of scoring.")
    ] = 64,
    fraction: Annotated[
        float,
        _option(
            metavar="P", help="Share of the subjects to forget whose examples the attacker has."
        ),
    ] = 0.5,
    seed: Annotated[
        int,
        _option(help="Of that choice, of the order of training, and of the bootstrap intervals."),
    ] = 0,
    device: Device = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Train on a part of what was forgotten, and ask for the rest.

    What the part speaks of, the rest does not: names and numbers that tell prompts apart are on
    one side only. Nothing is written. Needs the extra named eval.

    Example:  ws attack relearn ./edited --forget authors.jsonl --against ./base
    """
    check_installed("accelerate")
    from weightsurgery.procedures.attack import attack_relearn

    with console.progress(show, unit="steps") as progress:
        found = attack_relearn(
            ckpt,
            forget or [],
            keep or [],
            against,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            fraction=fraction,
            **how.arguments(),
            device=device,
            device_map=device_map,
            seed=seed,
            progress=progress,
        )
    _show(found, show)


@options
def quantize(
    ckpt: Model,
    show: Show,
    how: Scoring,
    forget: Forget = None,
    keep: Keep = None,
    against: Against = None,
    method: Annotated[
        list[str] | None,
        _option(
            autocompletion=among("nf4", "int8", "int4", "int4-asymmetric", "nf4-bitsandbytes"),
            metavar="NAME",
            help="nf4 (the default), int8, int4, int4-asymmetric, or nf4-bitsandbytes (that"
            " library's; needs it installed); repeatable.",
        ),
    ] = None,
    seed: Annotated[int, _option(help="Of the bootstrap.")] = 0,
    batch_size: Annotated[int, machine_option(help="Examples per forward pass.")] = 32,
    device: Device = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Round the weights to 4 or 8 bits, and ask again.

    Rounded are the linear layers but the one that makes logits, to nearest, in groups of 64: a
    change smaller than a step is undone. Nothing is written. Needs the extra named eval.

    Example:  ws attack quantize ./edited --forget authors.jsonl --method int8
    """
    check_installed()
    from weightsurgery.procedures.attack import attack_quantize

    with console.progress(show, unit="examples") as progress:
        found = attack_quantize(
            ckpt,
            forget or [],
            keep or [],
            against,
            methods=method or ["nf4"],
            **how.arguments(),
            batch_size=batch_size,
            device=device,
            device_map=device_map,
            seed=seed,
            progress=progress,
        )
    _show(found, show)


for _command in (relearn, quantize):
    app.command(cls=Command)(_command)


def _show(found: Attack, show: Show) -> None:
    from weightsurgery.learning.scores import METRICS
    from weightsurgery.report.attacked import attack_tables

    if show.json:
        console.document(asdict(found))
        return
    console.show(*attack_tables(found, {name: each.title for name, each in METRICS.items()}))
