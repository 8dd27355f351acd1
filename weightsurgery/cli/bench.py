"""The command that compares methods: bench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.options import Show, written_path
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import panel
from weightsurgery.cli.spread import options
from weightsurgery.cli.worlds import Variant, need_training

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench

__all__ = ["bench"]

_task_option, _table_option = panel("What is asked"), panel("Tables")


@options
def bench(
    show: Show,
    pages: Pages,
    seeds: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Seeds of the worlds; figures are over all of them."),
    ] = "0,1,2",
    variant: Variant = "default",
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this row; repeatable. Default: all."),
    ] = None,
    learn: Annotated[
        bool, _task_option(help="Learn facts the base lacks, instead of forgetting.")
    ] = False,
    overlap: Annotated[
        str | None,
        _task_option(
            metavar="P,P,...",
            help="Forget and keep data share the facts of this part of the people, as in 0,0.25;"
            " what is shared is to be kept. With it and without it in the request.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        _task_option(
            metavar="KIND,...",
            help="Forget half of a kind of knowledge, and score the other half too: facts, style"
            " (on the styled variants) or procedure.",
        ),
    ] = None,
    requests: Annotated[
        int | None,
        _task_option(
            metavar="N",
            help="Forget in N requests of as many people each: one by one, fused, in one go.",
        ),
    ] = None,
    threshold: Annotated[
        float,
        _task_option(
            metavar="P",
            help="Share of its score that each keep task must keep on validation facts.",
        ),
    ] = 0.975,
    relearn_steps: Annotated[
        int, _task_option(help="Steps of relearning half of what was forgotten; 0 for none.")
    ] = 40,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keep results here, row by row; rows that the file holds are not run again.",
            callback=written_path,
        ),
    ] = None,
    load: Annotated[
        list[str] | None,
        _table_option(
            metavar="FILE",
            help="Only print what --json printed; several files are joined, and variants put side"
            " by side.",
        ),
    ] = None,
    markdown: Annotated[bool, _table_option(help="Print the tables as Markdown.")] = False,
) -> None:
    """Hold methods against each other on small worlds.

    By facts that no edit ever saw: every method has eight candidates; the best by validation facts
    is scored, once, on the rest. A world takes about an hour. Needs the extra named demo.

    Example:  ws bench --seeds 0 --method negate --method subspace
    """
    from weightsurgery.errors import EditError

    if not load:
        need_training("the bench trains small models")
    try:
        wanted = [int(text) for text in seeds.split(",")]
    except ValueError:
        raise EditError(f"--seeds {seeds}", "Give whole numbers, as in 0,1,2.") from None
    if not 0 <= threshold <= 1 or relearn_steps < 0:
        raise EditError(
            f"--threshold {threshold} --relearn-steps {relearn_steps}",
            "Give a share from 0 to 1, and steps from 0.",
        )
    if overlap is not None and learn:
        raise EditError("--overlap with --learn", "What is shared can only be forgotten.")
    if kind is not None and learn:
        raise EditError(f"--kind {kind} with --learn", "Kinds are to be forgotten: leave one out.")
    from weightsurgery.lab.bench import bench as run
    from weightsurgery.lab.bench.cost_tables import by_variant
    from weightsurgery.lab.bench.kinds import kind_requests
    from weightsurgery.lab.bench.requests import ForgetRequest, overlaps
    from weightsurgery.lab.bench.results import read_bench

    pages.check()  # before a quarter of an hour of work
    forget_requests: list[ForgetRequest] = [] if overlap is None else [*overlaps(overlap)]
    forget_requests += [] if kind is None else kind_requests(kind.split(","), variant)
    if load:
        benches = by_variant([read_bench(path) for path in load])
    else:
        interrupted = "nothing was kept: --save FILE keeps the rows that are done."
        if save is not None:
            interrupted = f"the rows that are done are in {save}: the same command goes on."
        with console.progress(show, "steps", interrupted) as progress:
            results = run(
                wanted,
                variant,
                method,
                task="learn" if learn else "forget",
                forget_requests=forget_requests or (ForgetRequest(),),
                requests=requests,
                threshold=threshold,
                relearn_steps=relearn_steps,
                save_to=None if save is None else Path(save),
                progress=progress,
            )
        benches = [results]
    _print(benches, show, markdown, pages)


def _print(benches: Sequence[Bench], show: Show, markdown: bool, pages: Pages) -> None:
    """Print the tables, or their documents; then write the page and the picture."""
    from weightsurgery.lab.bench import FORGETTING, LEARNING
    from weightsurgery.lab.bench.frontier import families
    from weightsurgery.lab.bench.picture import draw_frontier
    from weightsurgery.lab.bench.tables import markdown as as_markdown
    from weightsurgery.lab.bench.tables import variant_tables
    from weightsurgery.report.tables import Table

    methods = LEARNING if benches[0].task == "learn" else FORGETTING
    tables = variant_tables(benches, {name: method.about for name, method in methods.items()})
    if show.json:
        documents = [results.document() for results in benches]
        console.document(documents[0] if len(documents) == 1 else documents)
    else:
        console.show(*(as_markdown(t) if markdown and isinstance(t, Table) else t for t in tables))
    if pages.html is not None:
        from weightsurgery.lab.bench.frontier import bench_sections
        from weightsurgery.report.sections import record_section, table_section

        drawn = bench_sections(benches)
        shown = [table_section(table) for table in tables if isinstance(table, Table)]
        sections = [*drawn, *shown, record_section(show.command)]
        replace(pages, figure=None).write("Forgetting against harm", sections, show)
    if pages.figure is not None:
        draw_frontier(benches, pages.figure, families())
        console.notice(f"Wrote {pages.figure}", show)
