"""The command that publishes an output: push."""

from __future__ import annotations

from typing import Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.options import Show, written_path
from weightsurgery.cli.panels import panel
from weightsurgery.cli.spread import options

__all__ = ["push"]

_option = panel("The model card")


@options
def push(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="A directory written by ws.", callback=written_path)
    ],
    repo: Annotated[str, typer.Argument(metavar="org/name", help="A model repository on the Hub.")],
    show: Show,
    private: Annotated[
        bool, typer.Option(help="Create it private; a public one is refused, not changed.")
    ] = False,
    pr: Annotated[bool, typer.Option(help="Open a pull request instead of committing.")] = False,
    branch: Annotated[
        str,
        typer.Option(metavar="NAME", help="Made from main if it is missing; refs/pr/N goes on."),
    ] = "main",
    message: Annotated[str, typer.Option(metavar="TEXT", help="Message of the commit.")] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace weights that ws did not write.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, and stop.")] = False,
    base_model: Annotated[
        str | None,
        _option(
            metavar="org/name",
            help="The base on the Hub, where the record knows a local path alone.",
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        _option(
            metavar="FILE",
            help="What 'ws evaluate OUT ... --json' wrote, for the table of before and after;"
            " repeatable.",
            callback=lambda paths: [written_path(path) for path in paths or ()],
        ),
    ] = None,
) -> None:
    """Publish an output on the Hub: verified, one commit, a model card.

    OUT is checked against its record first, and the commit afterwards. Only the record's files go
    up, with a README.md; your own text in it stays. Interrupted, the same command goes on.

    Example:  ws push ./edited me/edited --private
    """
    from huggingface_hub import HfApi, get_token

    from weightsurgery import __version__
    from weightsurgery.hub import Destination, plan_push
    from weightsurgery.hub import push as do_push
    from weightsurgery.hub.messages import push_document, push_tables, pushed_lines, start_line

    api = HfApi(token=get_token(), library_name="weightsurgery", library_version=__version__)
    destination = Destination(repo, branch, private, pr)
    with console.progress(show, interrupted="nothing was sent.") as progress:
        plan = plan_push(
            api,
            out,
            destination,
            title=message,
            overwrite=overwrite,
            base_model=base_model,
            scores=scores or (),
            anonymous=dry_run,
            progress=progress,
        )
    console.notices(plan.notices, show)
    if dry_run:
        console.result(
            show,
            lambda: push_document(plan),
            lambda: push_tables(plan, done=False, every=show.verbose),
        )
        return
    console.notice(start_line(plan), show)
    with console.progress(
        show, interrupted="the same command goes on, and sends nothing twice that was stored."
    ) as progress:
        done = do_push(api, plan, progress)
    console.notices(done.notices, show)
    console.result(
        show,
        lambda: push_document(plan, done),
        lambda: [*push_tables(plan, done=True, every=show.verbose), *pushed_lines(done)],
    )
