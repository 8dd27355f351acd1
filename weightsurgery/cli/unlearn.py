"""The command that runs the survey's systems: unlearn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.factors import Truncate
from weightsurgery.cli.find_and_edit import find_and_edit
from weightsurgery.cli.helped import among
from weightsurgery.cli.options import Ckpt, Show, Store, Which, Work, written_path
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import output_option, training_option
from weightsurgery.cli.spread import options
from weightsurgery.cli.training_options import Optimise
from weightsurgery.unlearning.methods import METHODS, SYSTEMS

__all__ = ["unlearn"]


def _list(context: typer.Context, wanted: bool) -> bool:
    """With the list nothing else is required."""
    if wanted:
        context.resilient_parsing = True
    return wanted


def _show_list(show: Show) -> None:
    from weightsurgery.report.trainings import system_tables, systems_document

    console.result(show, lambda: systems_document(SYSTEMS), lambda: system_tables(SYSTEMS))


def _installed(*further: str) -> None:
    from weightsurgery.deferred import need

    need("unlearn trains the model", "transformers", "accelerate", *further, extra="demo")


@dataclass(frozen=True)
class Data:
    """What goes, what stays, and what was never there."""

    forget: Annotated[list[str], typer.Option(metavar="FILE", help="Data to forget; repeatable.")]
    keep: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Data to keep; repeatable.")
    ] = None
    unseen: Annotated[
        list[str] | None,
        training_option(
            metavar="FILE",
            help="Data the model never saw, for methods that measure by it; repeatable. Of the form"
            " of what to forget.",
        ),
    ] = None


@dataclass(frozen=True)
class Tune:
    """Settings of the method; those left out are as published."""

    set_: Annotated[
        list[str] | None,
        training_option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the method, as in beta=0.5; repeatable. --list shows them.",
        ),
    ] = None
    lora_rank: Annotated[
        int | None,
        training_option(
            metavar="R", help="Train a LoRA adapter of this rank instead of the weights."
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """By name, values as JSON where they are that, else as text."""
        from weightsurgery.errors import EditError

        settings: dict[str, Any] = {}
        for text in self.set_ or ():
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise EditError(f"--set {text}", "Write NAME=VALUE, as in beta=0.5.")
            try:
                settings[name] = json.loads(value)
            except ValueError:
                settings[name] = value
        return settings


@options
def unlearn(
    ckpt: Ckpt,
    method: Annotated[
        str,
        typer.Option(
            autocompletion=among(*METHODS),
            metavar="NAME",
            help=f"{', '.join([*METHODS][:-1])} or {[*METHODS][-1]}.",
        ),
    ],
    data: Data,
    tune: Tune,
    optimise: Optimise,
    which: Which,
    truncate: Truncate,
    store: Store,
    work: Work,
    show: Show,
    pages: Pages,
    scale: Annotated[
        float,
        output_option(
            metavar="λ",
            help="Scale of the edit W − λT. The vector T is saved without it. For a method with a"
            " setting of that name, this multiplies it.",
        ),
    ] = 1.0,
    vector: Annotated[
        str | None,
        output_option(
            metavar="DIR",
            help="Where the vector is saved. Default: OUT.vector.",
            callback=written_path,
        ),
    ] = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            callback=_list,
            is_eager=True,
            help="Print the methods, and stop. With sources, data they need and defaults.",
        ),
    ] = False,
) -> None:
    """Forget data by a system of the unlearning survey, for comparison.

    arXiv 2311.15766; 'ws project' is this tool's own way. A killed run of one
    training goes on when started again. torchrun and accelerate launch work.

    Example:  ws unlearn ./model --method npo --forget authors.jsonl -o ./edited
    """
    if list_:
        _show_list(show)
        return
    pages.check()
    adapter = tune.lora_rank is not None or method in ("eul", "cpem-lora", "cpem-ia3")
    _installed(*(["peft"] if adapter else []))
    from weightsurgery.procedures.unlearn import MethodSettings, Sources
    from weightsurgery.report.trainings import trained_tables

    settings = MethodSettings(
        method,
        tune.settings(),
        {**optimise.given(), "seed": store.seed},
        tune.lora_rank,
        truncate.rule(),
    )
    selection = which.selection("all-linear", store.layer_scale)
    by_hand = any((which.targets, which.include, which.exclude, which.layers))
    find_and_edit(
        ckpt,
        Sources(data.forget, data.keep or (), unseen=data.unseen or ()),
        settings,
        "negate",
        trained_tables,
        store,
        work,
        show,
        pages,
        scale=scale,
        vector=vector,
        selection=selection if by_hand else None,
        scales=selection.scales,
    )
