"""The one place that prints: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table as RichTable

from weightsurgery.cli.options import Show
from weightsurgery.report.tables import Table

__all__ = ["document", "error", "notice", "progress", "show"]

# A pipe has no width: let nothing be cut there.
_out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def show(*items: str | Table) -> None:
    """Print data: lines and tables."""
    for item in items:
        if isinstance(item, str):
            _out.print(item, markup=False)
            continue
        _out.print(item.title, markup=False, style="bold")
        # Figures stay whole and names fold. Where even that is too wide for the terminal, its own
        # wrapping of whole lines loses nothing.
        widths = [max(map(len, cells)) for cells in zip(item.columns, *item.rows, strict=True)]
        least = [min(w, 20) if n in item.left else w for n, w in enumerate(widths)]
        drawn, margins = _rich(item), 3 * len(widths)
        width = _out.width if sum(least) + margins <= _out.width else sum(widths) + margins
        Console(highlight=False, width=width).print(drawn, crop=False)
        if item.note:
            _out.print(item.note, markup=False, style="dim", soft_wrap=False)


def _rich(table: Table) -> RichTable:
    drawn = RichTable(show_header=any(table.columns), box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(table.columns):
        words = number in table.left
        drawn.add_column(
            column,
            justify="left" if words else "right",
            overflow="fold",
            no_wrap=not words,
        )
    for row in table.rows:
        drawn.add_row(*(_escape(cell) for cell in row))
    return drawn


def document(data: Any) -> None:
    """Print the one JSON document of ``--json``."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def notice(text: str, options: Show) -> None:
    """Say something that is no data."""
    if not options.quiet:
        _err.print(text, markup=False, style="dim")


def error(what: str, remedy: str) -> None:
    """Print an error: what and where; what to do."""
    _err.print(f"[bold red]error:[/] {_escape(what)}")
    if remedy:
        _err.print(_escape(remedy))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


class _Bar:
    """A progress bar that appears once work has lasted a second."""

    def __init__(self, columns: Sequence[ProgressColumn]) -> None:
        self._columns = columns
        self._begun = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._begun < 1:
                return
            self._bar = Progress(*self._columns, console=_err, transient=True)
            self._task = self._bar.add_task(stage, total=total)
            self._bar.start()
        self._bar.update(self._task, description=stage, completed=done, total=total)

    def rest(self) -> None:
        """Make room for other output; the next second of work brings the bar back."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._begun = None, time.monotonic()


@contextmanager
def progress(options: Show, unit: str = "bytes") -> Iterator[_Bar | None]:
    """A callback ``(stage, done, total)`` that draws a bar; None where there is no terminal.

    Args:
        options: Quiet draws none.
        unit: ``"bytes"``, or anything else for plain counts.
    """
    if options.quiet or not _err.is_terminal:
        yield None
        return
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn()]
    else:
        columns += [MofNCompleteColumn()]
    bar = _Bar([*columns, TimeRemainingColumn()])
    try:
        yield bar
    finally:
        bar.rest()
