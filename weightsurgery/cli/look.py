"""Commands that look at a model or an output: inspect, overlap, verify."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.factors import Truncate
from weightsurgery.cli.opened import open_base, remarked
from weightsurgery.cli.options import Fit, Show, Which, Work, written_path
from weightsurgery.cli.spread import options

__all__ = ["Base", "Page", "inspect", "overlap", "verify"]

Base = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint before.")]
Page = Annotated[
    str | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Also write a page with pictures. Needs the extra named report.",
        callback=written_path,
    ),
]


@options
def inspect(
    ckpt: Annotated[str, typer.Argument(metavar="CKPT", help="The checkpoint.")], show: Show
) -> None:
    """Show tensors, dtypes, shards, ties, what is quantised and odd.

    Reads headers and config; of the weights, at most a stored head and its embedding, to tell
    whether they are tied. From the Hub no more than the headers is fetched.

    Example:  ws inspect ./model
    Example:  ws inspect org/name@v1.0
    """
    from weightsurgery.checkpoint.inspection import inspect as look
    from weightsurgery.checkpoint.remote import open_remote
    from weightsurgery.report.tables import inspection_tables

    with open_remote(ckpt) as checkpoint:
        found = look(checkpoint)
        entries = list(checkpoint.entries.values()) if show.verbose else None
    if show.json:
        console.document(asdict(found))
    else:
        console.show(*inspection_tables(found, entries))


@options
def overlap(
    base: Base,
    vectors: Annotated[
        list[str], typer.Argument(metavar="VECTOR", help="At least two changes of it.")
    ],
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    html: Page = None,
) -> None:
    """Show how much the subspaces of tasks share, per layer.

    Overlap is the mean squared cosine of the principal angles, from 0 to 1; compare it with what
    random subspaces of the same rank would share ("chance"). Default: --rank 32.

    Example:  ws overlap ./base ./finetuned/authors ./finetuned/painters
    """
    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.report.tables import overlap_tables
    from weightsurgery.surgery.overlap import overlaps
    from weightsurgery.vectors.sources import open_vector

    with open_base(base, fit, Checkpoint.open) as opened:
        remarked(opened, show)
        opened_vectors = {}
        for text in vectors:
            vector = open_vector(opened, [text], fit.vocab, fit.missing, partial=fit.partial)
            label, again = vector.label, 1
            while label in opened_vectors:  # none is dropped, be it the same one again
                label, again = text if again == 1 else f"{text} ({again})", again + 1
            opened_vectors[label] = vector
            for line in vector.notes():
                console.notice(line, show)
        with console.progress(show) as progress:
            rows, means = overlaps(
                opened,
                opened_vectors,
                truncate.rule() or Rank(32),
                selection=which.selection("all-linear"),
                device=work.device,
                workers=work.workers,
                progress=progress,
            )
    if html is not None:
        from weightsurgery.report.page import overlap_page

        overlap_page(rows, means, base, html)
        console.notice(f"Wrote {html}.", show)
    if show.json:
        console.document(
            {"mean": [asdict(each) for each in means], "tensors": [asdict(row) for row in rows]}
        )
    else:
        console.show(*overlap_tables(rows, means, every=show.verbose))


@options
def verify(
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="A directory written by ws.", callback=written_path),
    ],
    show: Show,
) -> None:
    """Check every file of an output against its record (SHA-256).

    It finds damage, and files that were added for a model to be loaded with. It finds no forgery:
    records are not signed, and whoever changes an output can write another one.

    Example:  ws verify ./edited
    """
    from pathlib import Path

    from weightsurgery.checkpoint.record import verify as check
    from weightsurgery.report.tables import verified_line

    with console.progress(show) as progress:
        record = check(
            Path(out),
            None if progress is None else lambda done, total: progress("checking", done, total),
        )
    if show.json:
        console.document({"verified": True, "files": record.files, "command": record.command})
    else:
        console.show(verified_line(out, record))
