"""The command that shows how models complete prompts: try."""

from __future__ import annotations

from typing import Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.options import Show
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import machine_option
from weightsurgery.cli.score import Device, Model, check_installed
from weightsurgery.cli.spread import options

__all__ = ["try_"]


@options
def try_(
    ckpt: Model,
    show: Show,
    pages: Pages,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="To go on with; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="Prompts of a data set; what it has for them is shown beside. Repeatable.",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="BASE", help="Show what this checkpoint says, too.")
    ] = None,
    chat: Annotated[
        bool, typer.Option(help="Ask as a user, in the model's own chat template.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to go on for at most.")] = 48,
    most: Annotated[int, typer.Option(min=1, help="Prompts of each DATA at most.")] = 10,
    batch_size: Annotated[int, machine_option(min=1, help="Prompts per forward pass.")] = 32,
    device: Device = "auto",
) -> None:
    """Show how a checkpoint completes prompts, beside another one.

    Completions are greedy: the likeliest token, again and again. DATA is as for 'ws evaluate'.
    Needs the extra named eval.

    Example:  ws try ./edited --against ./base --prompt "The capital of France is"
    """
    check_installed()
    pages.check()
    from weightsurgery.errors import DataError
    from weightsurgery.learning.completions import complete
    from weightsurgery.learning.data import Example, read_examples
    from weightsurgery.learning.models import load_tokenizer
    from weightsurgery.report.completions import completion_tables, try_sections

    examples = [Example(text, "") for text in prompt or ()]
    if data:
        tokenizer = load_tokenizer(ckpt)
        for name in data:
            examples += read_examples(name, tokenizer)[:most]
    if not examples:
        raise DataError(
            "no prompt to go on with", 'Give --prompt "The capital of France is", or --data FILE.'
        )
    names = [ckpt] if against is None else [against, ckpt]
    with console.progress(show, unit="prompts") as progress:
        completions = complete(
            names,
            examples,
            chat=chat,
            length=tokens,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    prompts = [
        {
            "prompt": example.prompt,
            "completion": example.completion or None,
            "said": {
                name: {"text": completion.text, "ended": completion.ended}
                for name, completion in zip(names, row, strict=True)
            },
        }
        for example, row in zip(examples, completions, strict=True)
    ]
    document = {"checkpoint": ckpt, "against": against, "chat": chat, "tokens": tokens,
                "prompts": prompts}  # fmt: skip
    console.result(show, lambda: document, lambda: completion_tables(document))
    if pages:
        from weightsurgery.report.sections import record_section

        sections = [*try_sections(document), record_section(show.command)]
        pages.write(f"Completions of {ckpt}", sections, show)
