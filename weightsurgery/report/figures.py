"""The pictures of a page for a paper: drawn by matplotlib from the same sections, as files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.plain_files import write_whole
from weightsurgery.deferred import need
from weightsurgery.errors import DataError, OutputError
from weightsurgery.report.page import check_file
from weightsurgery.report.visible import visible

__all__ = ["PLAIN_TEXT", "check_picture", "save_picture", "write_figures"]

PLAIN_TEXT: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "weightsurgery",
    "pdf.fonttype": 42,
    "text.parse_math": False,
}
"""Text stays text, dollars in it too, and the same picture has the same bytes."""

_DATES = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
# Okabe and Ito's, which the colour-blind tell apart; the marker says it once more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
_MARKERS = "os^Dv*P"


def check_picture(path: str | os.PathLike[str]) -> None:
    """Whether a picture can be drawn and written there; before anything is computed.

    Raises:
        WeightSurgeryError: matplotlib is not installed.
        OutputError: No such kind of picture, or its directory is missing.
    """
    need(f"{path}: is drawn with matplotlib", "matplotlib", extra="report")
    target = Path(path)
    if target.suffix.lower()[1:] not in _DATES:
        raise OutputError(f"{target}: no kind of picture", "End it in .svg, .pdf or .png.")
    check_file(target)


def save_picture(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure, whole or not at all; the same figure as the same bytes.

    Raises:
        OutputError: It cannot be written.
    """
    target, buffer = Path(path), io.BytesIO()
    kind = target.suffix.lower()[1:]
    figure.savefig(buffer, format=kind, bbox_inches="tight", metadata=_DATES[kind])
    try:
        write_whole(target, buffer.getvalue())
    except OSError as error:
        raise OutputError(
            f"{target}: {error.strerror}", "Name a file that can be written."
        ) from None


def write_figures(
    path: str | os.PathLike[str], sections: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Draw each section that is a picture.

    Args:
        path: Of the first picture; the second is ``NAME-2.svg`` beside it, and so on.
        sections: Of a page, see :mod:`weightsurgery.report.sections`.

    Returns:
        The files, in the order of the page.

    Raises:
        WeightSurgeryError: matplotlib is missing, nothing is to be drawn, or it cannot be written.
    """
    check_picture(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    target = Path(path)
    drawn = [picture for picture in sections if picture["type"] in _DRAW and _holds(picture)]
    if not drawn:
        raise DataError(f"{target}: there is nothing to draw", "Leave --figure out.")
    files = []
    with mpl.rc_context(PLAIN_TEXT):
        for number, section in enumerate(drawn, 1):
            name = target if number == 1 else target.with_stem(f"{target.stem}-{number}")
            figure = Figure(dpi=200, layout="constrained")
            _DRAW[section["type"]](figure, section)
            save_picture(figure, name)
            files.append(name)
    return files


def _holds(section: Mapping[str, Any]) -> bool:
    if section["type"] == "scores":
        return any(row["share"] for row in section["rows"])
    return bool(section.get("points", True)) and bool(section.get("series", True))


def _map(figure: Any, section: Mapping[str, Any]) -> None:
    """The first of the figures by layer and module."""
    measure, layers, modules = section["measures"][0], section["layers"], section["modules"]
    grid = [[float("nan")] * len(layers) for _ in modules]
    factor = 100 if measure["share"] else 1
    for layer, module, _, value, *_ in section["cells"]:
        if value is not None:
            grid[modules.index(module)][layers.index(layer)] = factor * value
    figure.set_size_inches(2.4 + 0.2 * max(8, len(layers)), max(2.0, 0.9 + 0.2 * len(modules)))
    axes = figure.subplots()
    image = axes.pcolormesh(grid, cmap="Blues", edgecolors="white", linewidth=0.5)
    axes.invert_yaxis()
    axes.set_yticks([n + 0.5 for n in range(len(modules))], modules, fontsize=7)
    every = range(0, len(layers), -(-len(layers) // 32))
    axes.set_xticks([n + 0.5 for n in every], [_layer(layers[n]) for n in every], fontsize=7)
    axes.tick_params(length=0)
    axes.set_xlabel("layer", fontsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, pad=0.02, shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(measure["label"] + (", %" if measure["share"] else ""), fontsize=8)


def _layer(number: int) -> str:
    return "–" if number < 0 else str(number)


def _grid(figure: Any, section: Mapping[str, Any]) -> None:
    names = [visible(cell) for cell in section["names"]]
    values = [[float("nan") if cell is None else cell for cell in row] for row in section["values"]]
    figure.set_size_inches(1.6 + 0.8 * len(names), 1.2 + 0.6 * len(names))
    axes = figure.subplots()
    axes.imshow(values, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value:
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                          color="white" if value > 0.6 else "black")  # fmt: skip


def _lines(figure: Any, section: Mapping[str, Any]) -> None:
    figure.set_size_inches(6.4, 2.8)
    axes = figure.subplots()
    for number, line in enumerate(section["series"]):
        axes.plot(*zip(*line["points"], strict=True), markersize=3, label=visible(line["name"]),
                  marker=_MARKERS[number % 7], color=_COLOURS[number % 7])  # fmt: skip
    for name, value in section["rules"].items():
        if value is not None:
            axes.axhline(value, color="gray", linestyle=":", label=name)
    axes.set(xlabel=section["x"], ylabel=section["y"])
    axes.set_ylim(0, None if section["top"] is None else 1.03 * section["top"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(figure, axes)


def _scores(figure: Any, section: Mapping[str, Any]) -> None:
    rows = [row for row in section["rows"] if row["share"]]
    figure.set_size_inches(6.4, 0.8 + 0.26 * len(rows))
    axes = figure.subplots()
    for when, offset, colour, filled in (("before", -0.14, _COLOURS[1], "white"),
                                        ("after", 0.14, _COLOURS[0], _COLOURS[0])):  # fmt: skip
        known = [(n + offset, row[when]) for n, row in enumerate(rows) if row[when]]
        for height, (value, low, high) in known:
            if low is not None:
                axes.plot([100 * low, 100 * high], [height, height], color=colour, linewidth=1.2)
            axes.plot([100 * value], [height], marker="o", markersize=4, color=colour,
                      markerfacecolor=filled, linestyle="none",
                      label=when if height == known[0][0] else None)  # fmt: skip
    labels = [visible(f"{row['set']}: {row['metric']}") for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlim=(-2, 102), xlabel="%")
    _finish(figure, axes)


def _points(figure: Any, section: Mapping[str, Any]) -> None:
    """A line per setting, the frontier over them, the chosen point in a ring."""
    figure.set_size_inches(6.8, 4)
    axes = figure.subplots()
    names = list(dict.fromkeys(point["series"] for point in section["points"]))
    for number, name in enumerate(names):
        points = [
            (point["x"], point["y"]) for point in section["points"] if point["series"] == name
        ]
        axes.plot(*zip(*points, strict=True), color=_COLOURS[number % 7], label=visible(name),
                  marker=_MARKERS[number % 7], markersize=4, alpha=0.8,
                  linestyle="-" if section.get("joined") else "none")  # fmt: skip
    if section.get("frontier"):
        axes.plot(*zip(*section["frontier"], strict=True), color="black", linewidth=1,
                  linestyle="--", zorder=1, label="frontier")  # fmt: skip
    for point in section["points"]:
        if point.get("mark") == "chosen":
            axes.scatter([point["x"]], [point["y"]], s=110, facecolors="none", edgecolors="black",
                         zorder=3, label=f"chosen: {visible(point['label'])}")  # fmt: skip
    limit = section.get("limit")
    if limit:
        axes.axvline(limit["x"], color="gray", linestyle=":", label=limit["label"])
    axes.set(xlabel=visible(section["x"]), ylabel=visible(section["y"]))
    _finish(figure, axes)


def _finish(figure: Any, axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)


_DRAW: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "map": _map,
    "grid": _grid,
    "lines": _lines,
    "scores": _scores,
    "points": _points,
}
