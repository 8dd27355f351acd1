"""An edit by a vector that is trained on data first: run, and its report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from weightsurgery.cli import console
from weightsurgery.cli.opened import remarked
from weightsurgery.cli.options import Show, Store, Work, written_line
from weightsurgery.cli.paged import Pages

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord
    from weightsurgery.checkpoint.selection import Selection
    from weightsurgery.procedures.unlearn import MethodSettings, Search, Sources
    from weightsurgery.report.tables import Table
    from weightsurgery.unlearning.run import Unlearned

__all__ = ["find_and_edit"]

_INTERRUPTED = (
    "the same command goes on from what is finished: the answers it asked for, the last point of"
    " the training that was saved, or the vector."
)


def find_and_edit(
    base: str,
    sources: Sources,
    method: Search | MethodSettings,
    again: str,
    tables: Callable[[EditRecord], Sequence[str | Table]],
    store: Store,
    work: Work,
    show: Show,
    pages: Pages,
    scale: float,
    scales: tuple[tuple[str, float], ...],
    vector: str | None = None,
    selection: Selection | None = None,
) -> None:
    """Train a vector on data and apply it; or print the plan.

    Args:
        base: The checkpoint, as it was named.
        sources: The data.
        method: Finds the vector.
        again: The command that applies the saved vector: negate or add.
        tables: Makes tables about the training from the vector's record.
        store: How the result is stored.
        work: Who does the work.
        show: How to print.
        pages: Where the page goes.
        scale: λ of the edit.
        scales: Factors of it by tensor, as in a selection.
        vector: Where the vector is saved.
        selection: Which tensors; None for those the method trains.
    """
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.errors import OutputError
    from weightsurgery.learning.stages import is_main
    from weightsurgery.procedures.unlearn import Output, plan, unlearn
    from weightsurgery.report.plans import data_plan_lines

    if store.on_s3:
        raise OutputError(
            f"{store.out}: edits from data are tried and looked at in a directory",
            "Write to a directory with -o, and copy it there.",
        )
    output = Output(
        store.out, vector, scale, scales, store.storage(), store.overwrite, store.allow_unrelated
    )
    with Checkpoint.open(base) as opened:
        if is_main():
            remarked(opened, show)
        if store.dry_run:
            planned = plan(opened, sources, output, method, selection, **vars(work))
            if is_main():
                console.result(show, planned.summary, lambda: data_plan_lines(planned, store.out))
            return
        with console.progress(show, "steps", _INTERRUPTED) as progress:
            done = unlearn(
                opened,
                sources,
                how=method,
                selection=selection,
                command=show.command,
                progress=progress,
                **vars(output),
                **vars(work),
            )
    if done is not None:
        _show(done, tables(done.vector), base, again, store, show)
        pages.of_output(store.out, show)


def _show(
    done: Unlearned,
    trained: Sequence[str | Table],
    base: str,
    again: str,
    store: Store,
    show: Show,
) -> None:
    """Print the vector, the edit, and what to do with them."""
    from weightsurgery.report.exported import written_tables

    record = done.applied.record
    if show.json:
        vector = {"path": str(done.place), **asdict(done.vector)}
        console.document({"out": store.out, **asdict(record), "vector": vector})
    else:
        console.show(*trained, *written_tables(record, every=show.verbose))
    console.notices((*done.notices, *done.applied.notices), show)
    place = os.path.relpath(done.place) if done.place.is_relative_to(os.getcwd()) else done.place
    command = f"ws {again} {shlex.quote(base)} {shlex.quote(str(place))} -o ./edited --scale 0.8"
    console.notice(f"Saved the vector in {place}; at another scale:  {command}", show)
    console.notice(written_line(store.out, record.kind), show)
