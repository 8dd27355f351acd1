"""The commands that try to bring back what was forgotten: attack relearn, attack quantize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.helped import Command, Group, among
from weightsurgery.cli.options import Show
from weightsurgery.cli.panels import machine_option, panel
from weightsurgery.cli.score import (
    BatchSize,
    Forget,
    Keep,
    Model,
    Placement,
    Scoring,
    check_installed,
)
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


@dataclass(frozen=True)
class Attacked:
    """What is attacked, and how it is scored before and after."""

    ckpt: Model
    show: Show
    scoring: Scoring
    forget: Forget = None
    keep: Keep = None
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="A control that gets the same attack: a model that never knew, or the one before"
            " the edit.",
        ),
    ] = None
    reference: Annotated[
        str | None,
        _option(
            metavar="CKPT|FILE.json",
            help="A model that never saw what is to be forgotten, for its forget quality in every"
            " state, as 'ws evaluate --metric tofu' has it; or what that said of one with --json.",
        ),
    ] = None


@dataclass(frozen=True)
class Relearning:
    """How it is trained again; each is an argument of the library's ``attack_relearn``."""

    steps: Annotated[int, _option(help="Optimiser steps (AdamW, all weights).")] = 40
    learning_rate: Annotated[float, _option(help="Learning rate; large models need less.")] = 5e-4
    batch_size: Annotated[int, _option(help="Examples per step.")] = 64
    score_batch: Annotated[
        int | None,
        machine_option(
            metavar="N", help="Examples per forward pass of scoring. Default: those of a step."
        ),
    ] = None
    fraction: Annotated[
        float,
        _option(
            metavar="P", help="Share of the subjects to forget whose examples the attacker has."
        ),
    ] = 0.5
    train: Annotated[
        list[str] | None,
        _option(
            metavar="DATA",
            help="What the attacker has instead: some rows of it, what is to stay, or text about"
            " something else; all of --forget is asked. Repeatable.",
        ),
    ] = None
    looks: Annotated[
        list[int] | None,
        _option(
            "--look",
            metavar="STEP",
            help="Ask after so many steps, too: the curve of what comes back. Repeatable.",
        ),
    ] = None
    seed: Annotated[
        int,
        _option(
            help="Seed of that choice, of the order of training, and of the bootstrap intervals."
        ),
    ] = 0


@options
def relearn(attacked: Attacked, relearning: Relearning, place: Placement) -> None:
    """Train on a part of what was forgotten, and ask for the rest.

    What the part speaks of, the rest does not: names and numbers that tell prompts apart are on
    one side only. Nothing is written. Needs the extra named eval.

    Example:  ws attack relearn ./edited --forget authors.jsonl --against ./base
    """
    check_installed("accelerate")
    from weightsurgery.procedures.attack import attack_relearn

    lists = {"train": relearning.train or [], "looks": relearning.looks or []}
    _attack(attack_relearn, "steps", attacked, **{**vars(relearning), **lists}, **vars(place))


@options
def quantize(
    attacked: Attacked,
    method: Annotated[
        list[str] | None,
        _option(
            autocompletion=among("nf4", "int8", "int4", "int4-asymmetric", "nf4-bitsandbytes"),
            metavar="NAME",
            help="nf4 (the default), int8, int4, int4-asymmetric, or nf4-bitsandbytes (that"
            " library's; needs it installed); repeatable.",
        ),
    ] = None,
    seed: Annotated[int, _option(help="Seed of the bootstrap intervals.")] = 0,
    batch_size: BatchSize = 32,
    *,
    place: Placement,
) -> None:
    """Round the weights to 4 or 8 bits, and ask again.

    Rounded are the linear layers but the one that makes logits, to nearest, in groups of 64: a
    change smaller than a step is undone. Nothing is written. Needs the extra named eval.

    Example:  ws attack quantize ./edited --forget authors.jsonl --method int8
    """
    check_installed()
    from weightsurgery.procedures.attack import attack_quantize

    settings = {"methods": method or ["nf4"], "seed": seed, "batch_size": batch_size}
    _attack(attack_quantize, "examples", attacked, **settings, **vars(place))


for _command in (relearn, quantize):
    app.command(cls=Command)(_command)


def _attack(attack: Callable[..., Attack], unit: str, attacked: Attacked, **settings: Any) -> None:
    from weightsurgery.report.attacked import attack_tables

    with console.progress(attacked.show, unit=unit) as progress:
        outcome = attack(
            attacked.ckpt,
            attacked.forget or [],
            attacked.keep or [],
            attacked.against,
            reference=attacked.reference,
            **attacked.scoring.arguments(),
            **settings,
            progress=progress,
        )
    console.result(attacked.show, lambda: asdict(outcome), lambda: attack_tables(outcome))
