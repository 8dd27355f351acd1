"""Commands that look at a model, an output or the machine: inspect, overlap, verify, doctor."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.factors import Truncate
from weightsurgery.cli.opened import open_base, remarked
from weightsurgery.cli.options import Ckpt, Fit, Show, Which, Work, written_path, written_place
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.spread import options

__all__ = ["Base", "doctor", "inspect", "overlap", "report", "verify"]

Base = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint before.")]


@options
def inspect(ckpt: Ckpt, show: Show) -> None:
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
        inspection = look(checkpoint)
        entries = list(checkpoint.entries.values()) if show.verbose else None
    console.result(show, lambda: asdict(inspection), lambda: inspection_tables(inspection, entries))


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
    pages: Pages,
) -> None:
    """Show how much the subspaces of tasks share, per layer.

    Overlap is the mean squared cosine of the principal angles, from 0 to 1; compare it with what
    random subspaces of the same rank would share ("chance"). Default: --rank 32.

    Example:  ws overlap ./base ./finetuned/authors ./finetuned/painters
    """
    pages.check()
    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.report.tables import overlap_tables
    from weightsurgery.surgery.overlap import overlaps
    from weightsurgery.vectors.sources import open_vector

    with open_base(base, fit, Checkpoint.open) as opened:
        remarked(opened, show)
        opened_vectors = {}
        for text in vectors:
            vector = open_vector(opened, [text], **fit.policies)
            label, again = vector.label, 1
            while label in opened_vectors:  # none is dropped, be it the same one again
                label, again = text if again == 1 else f"{text} ({again})", again + 1
            opened_vectors[label] = vector
            console.notices(vector.notes(), show)
        with console.progress(show) as progress:
            rows, means = overlaps(
                opened,
                opened_vectors,
                truncate.rule() or Rank(32),
                selection=which.selection("all-linear"),
                **vars(work),
                progress=progress,
            )
    document = {"mean": [asdict(row) for row in means], "tensors": [asdict(row) for row in rows]}
    console.result(show, lambda: document, lambda: overlap_tables(rows, means, every=show.verbose))
    if pages:
        from weightsurgery.report.sections import overlap_sections, record_section

        sections = [*overlap_sections(document), record_section(show.command)]
        pages.write(f"Overlap of {len(vectors)} tasks of {base}", sections, show)


@options
def verify(
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="A directory written by ws, or s3://BUCKET/PREFIX.",
            callback=written_place,
        ),
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
    console.result(
        show,
        lambda: {"verified": True, "files": record.files, "command": record.command},
        lambda: [verified_line(out, record)],
    )


@options
def report(
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="A directory written by ws, or a file that a command printed with --json.",
            callback=written_path,
        ),
    ],
    show: Show,
    pages: Pages,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="Show this too: what 'ws evaluate', 'try', 'sweep', 'overlap' or 'diff' printed"
            " with --json; repeatable.",
        ),
    ] = None,
) -> None:
    """Make a page about an output: what changed, where, at what cost.

    And how it was made. Without --html and --figure the page is OUT.html, beside OUT: one file that
    opens anywhere, without a network.

    Example:  ws report ./edited --with scores.json --html edited.html
    """
    from pathlib import Path

    from weightsurgery.report.outputs import output_page

    chosen = pages if pages else Pages(f"{out.rstrip('/')}.html")
    chosen.check()
    place = Path(out)
    more = [Path(os.path.expanduser(path)) for path in with_ or ()]
    with console.progress(show) as progress:
        title, sections = output_page(place, more, progress=progress)
    if show.json:
        console.document({"title": title, "sections": sections})
    chosen.write(title, sections, show)


@options
def doctor(
    show: Show,
    ckpt: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="Say what commands would take of it.")
    ] = None,
) -> None:
    """Say what is installed, what this machine has, what commands take.

    Of CKPT headers alone are read, on the Hub too. The figures are those that --dry-run of each
    command gives. Exit code 1 where the commands that need no extra could not be run.

    Example:  ws doctor
    Example:  ws doctor ./model
    """
    from weightsurgery.procedures.doctor import diagnose
    from weightsurgery.report.doctor import doctor_tables

    diagnosis = diagnose(ckpt)
    console.result(show, diagnosis.document, lambda: doctor_tables(diagnosis))
    if not diagnosis.ready:
        raise typer.Exit(1)
