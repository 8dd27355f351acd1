"""The one place that prints: data to stdout, everything else to stderr.

What is printed may be a stranger's: it is text, never markup, and steers no terminal.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from weightsurgery.cli.lines import Lines, rate
from weightsurgery.cli.options import Show
from weightsurgery.errors import OutputError
from weightsurgery.report.tables import Table
from weightsurgery.report.visible import visible, visible_json

__all__ = [
    "document",
    "error",
    "listen",
    "notice",
    "notices",
    "progress",
    "result",
    "say_interrupted",
    "show",
]

# A stream that was closed from outside leaves a hole, into which the next opened file would fall.
sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
for _stream in (sys.stdout, sys.stderr):
    if hasattr(_stream, "reconfigure"):  # a character the terminal lacks is no reason to fail
        _stream.reconfigure(errors="backslashreplace")

# A pipe has no width: let nothing be cut there. Names keep their colons: no emoji.
_out = Console(
    highlight=False, soft_wrap=True, emoji=False, width=None if sys.stdout.isatty() else 200
)
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


@contextmanager
def _written() -> Iterator[None]:
    """Turn a full disk behind stdout into an error of ours."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(
            f"stdout: {error.strerror or error}", "Check where the output is sent."
        ) from None


def show(*items: str | Table) -> None:
    """Print data: lines and tables.

    Raises:
        OutputError: stdout takes no more.
    """
    with _written():
        for item in items:
            if isinstance(item, str):
                _out.print(Text(visible(item, lines=True)))
            else:
                _show_table(item)


def _show_table(table: Table) -> None:
    table = dataclasses.replace(
        table,
        columns=tuple(visible(cell, lines=True) for cell in table.columns),
        rows=[tuple(visible(cell, lines=True) for cell in row) for row in table.rows],
    )
    _out.print(Text(visible(table.title, lines=True), "bold"))
    # Figures stay whole, names fold, and so do headings where that helps. Where even that is too
    # wide for the terminal, its own wrapping of whole lines loses nothing.
    least, widest = _widths(table, margin=3, words=20)
    narrow = least > _out.width
    if narrow:
        folded = (heading.replace(" ", "\n").replace("\n%", " %") for heading in table.columns)
        table = dataclasses.replace(table, columns=tuple(folded))
        least, widest = _widths(table, margin=2, words=9)
    width = _out.width if least <= _out.width else widest
    Console(highlight=False, emoji=False, width=width).print(_rich(table, narrow), crop=False)
    if table.note:
        _out.print(Text(visible(table.note, lines=True), "dim"), soft_wrap=False)


def _widths(table: Table, margin: int, words: int) -> tuple[int, int]:
    """What a table needs with names folded to so many letters, and with nothing folded."""
    columns = zip(table.columns, *table.rows, strict=True)
    widths = [max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
    least = [min(w, words) if n in table.left else w for n, w in enumerate(widths)]
    margins = margin * len(widths)
    return sum(least) + margins, sum(widths) + margins


def _rich(table: Table, narrow: bool) -> RichTable:
    drawn = RichTable(
        show_header=any(table.columns), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=narrow
    )
    for number, column in enumerate(table.columns):
        words = number in table.left
        drawn.add_column(
            Text(column), justify="left" if words else "right", overflow="fold", no_wrap=not words
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def document(data: Any) -> None:
    """Print the one JSON document of ``--json``."""
    # Where a character has no place, JSON's own escapes must stand, not the stream's.
    ascii_only = sys.stdout.encoding.lower() not in ("utf-8", "utf8")
    text = json.dumps(data, indent=1, ensure_ascii=ascii_only, allow_nan=False)
    with _written():
        sys.stdout.write(visible_json(text) + "\n")


def result(
    options: Show, data: Callable[[], Any], items: Callable[[], Iterable[str | Table]]
) -> None:
    """Print the result of a command: as the document of ``--json``, else as lines and tables."""
    if options.json:
        document(data())
    else:
        show(*items())


class _LogHandler(logging.Handler):
    """Prints what the library logs, each sentence once."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._printed and os.environ.get("RANK", "0") == "0":
            self._printed.add(text)
            _err.print(Text(_laid_out(text), "dim"))


def listen() -> None:
    """From here on, say what the library logs as information, unless :class:`Show` is quiet."""
    global _interruption_printed
    _interruption_printed = False
    log = logging.getLogger("weightsurgery")
    for old in [handler for handler in log.handlers if isinstance(handler, _LogHandler)]:
        log.removeHandler(old)
    log.addHandler(_LogHandler())
    log.setLevel(logging.INFO)


def notice(text: str, options: Show) -> None:
    """Print a notice, to stderr."""
    if not options.quiet:
        _err.print(Text(_laid_out(text), "dim"))


def notices(texts: Iterable[str], options: Show) -> None:
    """Print notices."""
    for text in texts:
        notice(text, options)


def error(what: str, remedy: str) -> None:
    """Print an error: what and where; what to do."""
    line = Text(_laid_out(f"error: {what}"))
    line.stylize("bold red", 0, len("error:"))
    _err.print(line)
    if remedy:
        _err.print(_laid_out(remedy), markup=False)


def _laid_out(text: str) -> str:
    """A sentence for stderr. A terminal breaks it between words, and gives a command its own line.

    The command, after a colon and two spaces, is never broken: it is there to be pasted.
    """
    text = visible(text)
    if not sys.stderr.isatty() or len(text) <= _err.width:
        return text
    words, colon, command = text.partition(":  ")
    lines = wrap(f"{words}{colon}", _err.width, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, f"  {command}"] if command else lines)


_interruption_printed = False


def say_interrupted(text: str = "Interrupted.", quiet: bool = False) -> None:
    """Say once that the work was interrupted; who is nearest to it knows what becomes of it.

    Args:
        text: What to say.
        quiet: Say nothing, now or later.
    """
    global _interruption_printed
    if not (_interruption_printed or quiet):
        _err.print(Text(_laid_out(text), "dim"))
    _interruption_printed = True


_SETTLED = 0.5  # seconds: threads that end together would make a rate of their first instant


def _settled(task: Task) -> bool:
    return (task.elapsed or 0) >= _SETTLED


class _Rate(ProgressColumn):
    """How fast plain counts go, in the words of the lines."""

    def render(self, task: Task) -> Text:
        known = task.speed and _settled(task)
        return Text(rate(task.speed or 0) if known else "", "progress.data.speed")


class _ByteRate(TransferSpeedColumn):
    def render(self, task: Task) -> Text:
        return super().render(task) if _settled(task) else Text("")


class _Remaining(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return super().render(task) if _settled(task) else Text("")


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
            self._task = self._bar.add_task(visible(stage), total=total)
            self._bar.start()
        if done < self._bar.tasks[0].completed:  # another stage, with a pace of its own
            self._bar.reset(self._task, total=total)
        self._bar.update(self._task, description=visible(stage), completed=done, total=total)

    def rest(self) -> None:
        """Make room for other output; the next second of work brings the bar back."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._begun = None, time.monotonic()


class _Log:
    """Progress where there is no terminal: a plain line now and then, for who reads the log."""

    def __init__(self, unit: str) -> None:
        self._lines = Lines(unit, time.monotonic())
        self._lock = threading.Lock()  # edits report progress from many threads

    def __call__(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            for line in self._lines.report(stage, done, total, time.monotonic()):
                self._print(line)

    def rest(self) -> None:
        """Print how far the last stage came, if a line about it was printed."""
        with self._lock:
            for line in self._lines.ended(time.monotonic()):
                self._print(line)

    def _print(self, line: str) -> None:
        # Nobody may be reading any more: that is no reason for the work to fail.
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{visible(line)}\n")
            sys.stderr.flush()


@contextmanager
def progress(
    options: Show, unit: str = "bytes", interrupted: str = "nothing was written."
) -> Iterator[_Bar | _Log | None]:
    """A callback ``(stage, done, total)`` that draws a bar; where there is no terminal, lines.

    Args:
        options: Quiet shows nothing: None.
        unit: ``"bytes"``, or anything else for plain counts.
        interrupted: What becomes of the work, for who presses Ctrl-C inside.
    """
    # Asked of the stream itself: FORCE_COLOR makes no terminal of a file.
    drawn = sys.stderr.isatty() and _err.is_terminal and not _err.is_dumb_terminal
    shown = None if options.quiet else _bar(unit) if drawn else _Log(unit)
    try:
        try:
            yield shown
        finally:
            if shown is not None:
                shown.rest()
    except KeyboardInterrupt:
        say_interrupted(f"Interrupted; {interrupted}", options.quiet)
        raise


def _bar(unit: str) -> _Bar:
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    if unit == "bytes":
        columns += [DownloadColumn(), _ByteRate()]
    else:
        columns += [MofNCompleteColumn(), _Rate()]
    return _Bar([*columns, _Remaining()])
