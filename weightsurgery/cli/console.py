"""The one place that prints: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
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
        else:
            _out.print(_rich(item))


def _rich(table: Table) -> RichTable:
    drawn = RichTable(
        show_header=any(table.columns),
        title=table.title,
        title_justify="left",
        caption=table.note or None,
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )
    for number, column in enumerate(table.columns):
        drawn.add_column(
            column, justify="left" if number in table.left else "right", overflow="fold"
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

    def __init__(self, columns: Sequence[Any]) -> None:
        self._progress = Progress(*columns, console=_err, transient=True)
        self._begun = time.monotonic()
        self._shown = False
        self._task = self._progress.add_task("", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._shown and time.monotonic() - self._begun > 1:
            self._shown = True
            self._progress.start()
        self._progress.update(self._task, description=stage, completed=done, total=total)

    def stop(self) -> None:
        if self._shown:
            self._progress.stop()


@contextmanager
def progress(options: Show, unit: str = "bytes") -> Iterator[Any]:
    """A callback ``(stage, done, total)`` that draws a bar; None where there is no terminal.

    Args:
        options: Quiet draws none.
        unit: ``"bytes"``, or anything else for plain counts.
    """
    if options.quiet or not _err.is_terminal:
        yield None
        return
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn()]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn()]
    else:
        columns += [MofNCompleteColumn()]
    bar = _Bar([*columns, TimeRemainingColumn()])
    try:
        yield bar
    finally:
        bar.stop()
