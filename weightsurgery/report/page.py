"""One self-contained HTML page: sections as JSON, and the script that draws them.

What is drawn comes from strangers too: names of tensors and files, completions. It stands in the
page as JSON alone, reaches the document as text, and a policy in the page's head lets no script run
but those that ws put there, and lets nothing be fetched. The pictures are drawn by Observable
Plot on D3 (``drawn/``, both as published, ISC licence): vectors, so that they print and can be
saved; small; without eval; read by screen readers. Plotly and Vega are two to five times the size
and need eval or a canvas, uPlot draws lines alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.plain_files import write_whole
from weightsurgery.errors import OutputError
from weightsurgery.report.visible import visible

__all__ = ["check_file", "page_text", "write_page"]

_SCRIPTS = ("d3.min.js", "plot.min.js", "page.js", "sections.js")


def check_file(path: str | os.PathLike[str]) -> None:
    """Whether a file might be written there; before anything is computed.

    Raises:
        OutputError: Its directory is missing, or it is one.
    """
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise OutputError(f"{target}: not a file that can be written", "Name another file.")


def page_text(title: str, sections: Sequence[Mapping[str, Any]]) -> str:
    """The page; the same for the same sections.

    Args:
        title: Of the page.
        sections: See :mod:`weightsurgery.report.sections`.
    """
    drawn = files("weightsurgery.report") / "drawn"
    scripts = [(drawn / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    licence = (drawn / "LICENSES.txt").read_text(encoding="utf-8")
    digests = (hashlib.sha256(text.encode()).digest() for text in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(_shown({"title": title, "sections": sections}), ensure_ascii=True)
    # In a script element nothing but these ends the JSON.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    style = (drawn / "page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<!--\n{licence}-->\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(visible(title))}</title>\n<style>\n{style}</style>\n"
        "<header><h1></h1></header><main></main>\n"
        "<noscript>The pictures are drawn by a script in this file, which this browser does not"
        " run. The same figures are printed with --json.</noscript>\n"
        f'<script type="application/json" id="data">{data}</script>\n'
        + "".join(f"<script>{text}</script>\n" for text in scripts)
        + "</html>\n"
    )


def _shown(value: Any) -> Any:
    """The same, with no character in any text that goes unseen or turns the direction."""
    if isinstance(value, str):
        return visible(value, lines=True)
    if isinstance(value, Mapping):
        return {_shown(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value


def write_page(
    path: str | os.PathLike[str], title: str, sections: Sequence[Mapping[str, Any]]
) -> None:
    """Write a page that needs no other file, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    target = Path(path)
    try:
        write_whole(target, page_text(title, sections))
    except OSError as error:
        raise OutputError(
            f"{target}: {error.strerror}", "Name a file that can be written."
        ) from None
