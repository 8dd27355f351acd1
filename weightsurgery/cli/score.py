"""The command that scores a checkpoint: evaluate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.options import Show
from weightsurgery.cli.spread import options

__all__ = ["evaluate"]

_HOW = "How it is scored"


@options
def evaluate(
    ckpt: Annotated[
        str, typer.Argument(metavar="CKPT", help="A causal language model with its tokenizer.")
    ],
    show: Show,
    forget: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA", help="What should be forgotten; repeatable."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="DATA", help="What should stay; repeatable.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Score this checkpoint too, and show forgetting and drift from it to CKPT.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="lm-eval:NAME", help="A task of lm-evaluation-harness; repeatable."),
    ] = None,
    include_path: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where task files (YAML) of your own are."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="exact_match, token_accuracy, perplexity, rouge_l (these are the default), nll,"
            " ma, el, es, truth_ratio, or all; repeatable.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    chance: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Exact match of guessing, from 0 to 1. Default: of each set the share of its"
            " most frequent completion.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    el_n: Annotated[
        int,
        typer.Option(
            "--el-n",
            help="Length of the n-grams of el, in tokens; shorter completions have none.",
            rich_help_panel=_HOW,
        ),
    ] = 10,
    any_end: Annotated[
        bool,
        typer.Option(
            "--any-end",
            help="An exact match need not stop after the completion.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Of the bootstrap intervals.", rich_help_panel=_HOW)
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Examples per forward pass.", rich_help_panel="The machine")
    ] = 32,
    device: Annotated[
        str,
        typer.Option(
            help="Where the model runs: auto, cpu, cuda or cuda:0.",
            rich_help_panel="The machine",
        ),
    ] = "auto",
) -> None:
    """Score a checkpoint on data to forget and data to keep, before and after an edit.

    DATA is JSONL, JSON, CSV, Parquet or a saved data set, with rows of {"prompt", "completion"},
    {"text"} or {"messages"}. Needs the extra named eval.

    Example:  ws evaluate ./edited --forget authors.jsonl --keep painters.jsonl --against ./base
    """
    _check_installed()
    from weightsurgery.learning.evaluate import evaluate as score
    from weightsurgery.learning.harness import find_tasks, run_tasks
    from weightsurgery.learning.scores import DEFAULT, METRICS
    from weightsurgery.report.scores import evaluation_tables, task_table

    wanted = find_tasks(tasks, include_path) if tasks else None
    found, figures = None, None
    if forget or keep or wanted is None:
        with console.progress(show, unit="examples") as progress:
            found = score(
                ckpt,
                forget or [],
                keep or [],
                against,
                metrics=metric or DEFAULT,
                chance_of=chance,
                n=el_n,
                require_end=not any_end,
                batch_size=batch_size,
                device=device,
                seed=seed,
                progress=progress,
            )
        if not show.json:
            titles = {name: each.title for name, each in METRICS.items()}
            console.show(*evaluation_tables(found, titles))
    if wanted is not None:
        console.notice(f"lm-evaluation-harness runs {', '.join(wanted.names)}.", show)
        figures = run_tasks(ckpt, wanted, against, batch_size=batch_size, device=device)
        if not show.json:
            console.show(task_table(figures))
    if show.json:
        document = {"checkpoint": ckpt, "against": against, "sets": []} | (
            asdict(found) if found is not None else {}
        )
        console.document({**document, "tasks": [asdict(each) for each in figures or ()]})


def _check_installed() -> None:
    from importlib.util import find_spec

    from weightsurgery.errors import WeightSurgeryError

    if find_spec("transformers") is None:
        raise WeightSurgeryError(
            "scoring runs the model, and transformers is not installed",
            "Install it with:  pip install 'weightsurgery[eval]'",
        )
