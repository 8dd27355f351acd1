"""Options for a page and for pictures, alike for every command that has something to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from weightsurgery.cli import console
from weightsurgery.cli.options import Show, written_path
from weightsurgery.cli.panels import panel

__all__ = ["Pages"]

_option = panel("What is printed")


@dataclass(frozen=True)
class Pages:
    """Where the page and the pictures go; true if either is wanted."""

    html: Annotated[
        str | None,
        _option(
            metavar="FILE",
            help="Also write a page: pictures that answer to pointer and keyboard, tables, the"
            " record. One file, which needs no network.",
            callback=written_path,
        ),
    ] = None
    figure: Annotated[
        str | None,
        _option(
            metavar="FILE",
            help="Also draw the pictures for a paper, as .svg, .pdf or .png: the first into FILE,"
            " others beside it (extra: report).",
            callback=written_path,
        ),
    ] = None

    def __bool__(self) -> bool:
        return self.html is not None or self.figure is not None

    def check(self) -> None:
        """Refuse what could not be drawn or written, before anything is computed.

        Raises:
            WeightSurgeryError: matplotlib is missing, or the name of no file or no picture.
        """
        if self.html is not None:
            from weightsurgery.report.page import check_file

            check_file(self.html)
        if self.figure is not None:
            from weightsurgery.report.figures import check_picture

            check_picture(self.figure)

    def of_output(self, out: str, show: Show, guard: Mapping[str, Any] | None = None) -> None:
        """Write the page and the pictures about an output, from its record.

        Args:
            out: Where it is.
            show: How to print.
            guard: The result of the guard, where the record does not hold it.
        """
        if not self:
            return
        from pathlib import Path

        from weightsurgery.report.outputs import output_page

        with console.progress(show, interrupted=f"{out} is whole.") as progress:
            page = output_page(Path(out), guard=guard, progress=progress)
        self.write(*page, show)

    def write(self, title: str, sections: Sequence[Mapping[str, Any]], show: Show) -> None:
        """Write the page and the pictures, and say so.

        Raises:
            OutputError: It cannot be written.
        """
        if self.html is not None:
            from weightsurgery.report.page import write_page

            write_page(self.html, title, sections)
            console.notice(f"Wrote {self.html}.", show)
        if self.figure is not None:
            from weightsurgery.report.figures import write_figures

            for path in write_figures(self.figure, sections):
                console.notice(f"Wrote {path}.", show)
