"""What is said of an edit whose vector was found on the way."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from weightsurgery.cli import console
from weightsurgery.cli.options import Show, Store, written_line
from weightsurgery.cli.paged import Pages

if TYPE_CHECKING:
    from weightsurgery.report.tables import Table
    from weightsurgery.unlearning.run import Unlearned

__all__ = ["INTERRUPTED", "show_found"]


INTERRUPTED = (
    "the same command goes on from what is finished: the answers it asked for, the last point of"
    " the training that was saved, or the vector."
)
"""What becomes of the work if finding the vector is interrupted."""


def show_found(
    done: Unlearned,
    trained: Sequence[str | Table],
    base: str,
    again: str,
    store: Store,
    show: Show,
    pages: Pages,
) -> None:
    """Print the vector, the edit, and what to do with them.

    Args:
        done: What came of it.
        trained: What is to be said of the training.
        base: The checkpoint, as it was named.
        again: The command that applies the vector: negate or add.
        store: Where it was written.
        show: How to print.
        pages: Where the page goes.
    """
    from weightsurgery.report.exported import written_tables

    record = done.applied.record
    if show.json:
        vector = {"path": str(done.place), **asdict(done.vector)}
        console.document({"out": store.out, **asdict(record), "vector": vector})
    else:
        console.show(*trained, *written_tables(record, every=show.verbose))
    for text in (*done.notices, *done.applied.notices):
        console.notice(text, show)
    place = os.path.relpath(done.place) if done.place.is_relative_to(os.getcwd()) else done.place
    command = f"ws {again} {shlex.quote(base)} {shlex.quote(str(place))} -o ./edited --scale 0.8"
    console.notice(f"Saved the vector in {place}; at another scale:  {command}", show)
    console.notice(written_line(store.out, record.kind), show)
    pages.of_output(store.out, show)
