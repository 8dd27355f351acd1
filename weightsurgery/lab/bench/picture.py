"""A bench as a picture: forgetting against harm, drawn by matplotlib, names beside the points."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsurgery.lab.bench.figures import is_stage, row_name
from weightsurgery.lab.bench.frontier import FAMILIES, Panel, Point, panels
from weightsurgery.report.figures import PLAIN_TEXT, check_picture, save_picture

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench

__all__ = ["Box", "draw_frontier", "place"]

# Okabe and Ito's colours, which the colour-blind tell apart; the marker says it once more.
_LOOKS = {
    "retrained": ("#000000", "*", 110),
    "control": ("#000000", "X", 44),
    "by weights": ("#0072B2", "s", 32),
    "from data": ("#D55E00", "o", 40),
    "trained": ("#009E73", "^", 42),
    "merging": ("#CC79A7", "D", 30),
    "prompted": ("#E69F00", "P", 48),
    "other": ("#777777", "v", 42),
}
_TICKS = (0, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_DPI = 130
_NAMES = 8  # points


def draw_frontier(
    benches: Sequence[Bench], path: str | os.PathLike[str], families: Mapping[str, str]
) -> None:
    """Draw a panel for each variant and request: what every method forgets, and what it harms.

    The same results and the same matplotlib draw the same bytes.

    Args:
        benches: With an outcome at least.
        path: Ends in .svg, .pdf or .png.
        families: Of methods, out of :data:`weightsurgery.lab.bench.frontier.FAMILIES`; what is not
            in it is ``"other"``.

    Raises:
        WeightSurgeryError: matplotlib is not installed.
        OutputError: It cannot be written.
        DataError: There is nothing to draw.
    """
    check_picture(path)
    drawn = panels(benches)
    import matplotlib as mpl

    with mpl.rc_context(PLAIN_TEXT):
        save_picture(_figure(drawn, families), path)


def _figure(panels: Sequence[Panel], family_of: Mapping[str, str]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [point for panel in panels for point in panel.points]
    bottom = min(0.0, *(point.reached.mean for point in points)) - 6
    right = max(5.0, 1.25 * max(_right(point) for point in points))
    across = min(len(panels), 2 if len(panels) < 5 else 3)
    down = -(-len(panels) // across)
    width, height = (10.0, 6.6) if len(panels) == 1 else (6.4, 5.0)
    figure = Figure(figsize=(width * across, height * down), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)  # measures text
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for spare in grid[len(panels) :]:
        spare.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, family_of, bottom, right)  # all alike, so that they can be compared
        if len(panels) > 1:
            axes.set_title(row_name(panel.variant, panel.request), fontsize=10)
    figure.suptitle(_title(panels), fontsize=13)
    _legend(figure, panels, family_of)
    figure.supxlabel(_caption(panels), fontsize=8, color="#444444")
    figure.draw_without_rendering()  # places and sizes are known from here on
    figure.set_layout_engine("none")
    for axes, panel in zip(grid, panels, strict=False):
        _label(figure, axes, panel, family_of)
    return figure


def _title(panels: Sequence[Panel]) -> str:
    first = panels[0]
    done = "Learning" if first.learning else "Forgetting"
    what = f"{done} against harm"
    variants = list(dict.fromkeys(panel.variant for panel in panels))
    return f"{what}, {', '.join(variants)} world{'s' * (len(variants) > 1)}"


def _caption(panels: Sequence[Panel]) -> str:
    first = panels[0]
    by_variant = len(dict.fromkeys(panel.variant for panel in panels)) > 1
    stages = any(is_stage(panel.request) for panel in panels)
    seeds = "; ".join(
        (f"{name}: " if by_variant else "") + ", ".join(map(str, numbers))
        for name, numbers in {panel.variant: panel.seeds for panel in panels}.items()
    )
    lines = [
        f"Seeds {seeds}: means; bars are standard deviations, cut at 0 and 100. Settings by"
        f" validation facts: the most {'learned' if first.learning else 'forgotten'} with each"
        f" keep task at {first.threshold:.1%} of the base or more (dotted).",
        "Hollow: on some seed no candidate held that; the least harmful is shown"
        f"{', or a request of several refused' if stages else ''}.",
    ]
    if any(point.trade_off for panel in panels for point in panel.points):
        lines.append(
            "Thin: a method's candidates, means per setting, where none of its others is better;"
            " their harm is on validation facts, and lines join them for the eye alone."
        )
    if any(panel.shared for panel in panels):
        lines.append("Harm leaves out the facts that the request shares with what is to be kept.")
    return "\n".join(lines)


def _draw(
    axes: Any, panel: Panel, family_of: Mapping[str, str], bottom: float, right: float
) -> None:
    axes.axvline(100 * (1 - panel.threshold), color="#888888", linestyle=":", linewidth=1, zorder=1)
    for point in panel.points:
        color, marker, size = _LOOKS[family_of.get(point.method, "other")]
        if len(point.trade_off) > 1:
            axes.plot(*zip(*point.trade_off, strict=True), color=color, linewidth=0.7, alpha=0.35,
                      marker=".", markersize=3, zorder=2)  # fmt: skip
        x, y = point.harm, point.reached
        for start, end in _bars(point):
            axes.plot(*zip(start, end, strict=True), color=color, linewidth=0.8, alpha=0.35,
                      zorder=3)  # fmt: skip
        axes.scatter(
            [x.mean], [y.mean], s=size, marker=marker, linewidths=1.3, edgecolors=color,
            zorder=4 if marker == "*" else 5,  # the large ones lie below
            facecolors=color if point.held else "white", gid=f"point {point.method}",
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=1, linscale=1)
    axes.set_xlim(-0.12, right)
    axes.set_ylim(bottom, 108)
    axes.set_xticks([tick for tick in _TICKS if tick <= right])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("harm: drift of the worst task to keep, on unseen facts, % (linear up to 1)")
    axes.set_ylabel("learned, %" if panel.learning else "forgotten over chance, %")
    axes.grid(alpha=0.2)


def _bars(point: Point) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """The ends of the lines that show the spread; harm is 0 at least, and reach 100 at most."""
    x, y = point.harm, point.reached
    yield (max(0.0, x.mean - x.spread), y.mean), (x.mean + x.spread, y.mean)
    low = min(y.mean, max(0.0, y.mean - y.spread))
    yield (x.mean, low), (x.mean, max(y.mean, min(100.0, y.mean + y.spread)))


def _right(point: Point) -> float:
    return max(point.harm.mean + point.harm.spread, *(harm for harm, _ in point.trade_off), 0.0)


def _label(figure: Any, axes: Any, panel: Panel, family_of: Mapping[str, str]) -> None:
    """Names beside their points, each with a thin line where it had to go further off."""
    colours = [_LOOKS[family_of.get(point.method, "other")][0] for point in panel.points]
    renderer = figure.canvas.get_renderer()
    sizes = []
    for point in panel.points:
        text = axes.text(0, 0, point.method, fontsize=_NAMES)
        box = text.get_window_extent(renderer)
        sizes.append((float(box.width), float(box.height)))
        text.remove()
    spots = axes.transData.transform([(p.harm.mean, p.reached.mean) for p in panel.points])
    points = [(float(x), float(y)) for x, y in spots]
    area = axes.get_window_extent(renderer)
    bars = [
        tuple(axes.transData.transform([start, end]).flatten())
        for point in panel.points
        for start, end in _bars(point)
    ]
    middles = place(points, sizes, (area.x0, area.y0, area.x1, area.y1), bars)
    # In shares of the axes, which hold at any resolution.
    within = axes.transAxes.inverted().transform(middles)
    for point, colour, middle in zip(panel.points, colours, within, strict=True):
        axes.annotate(
            point.method, (point.harm.mean, point.reached.mean), xytext=middle,
            textcoords="axes fraction", ha="center", va="center", color=colour, fontsize=_NAMES,
            zorder=6, annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


def _legend(figure: Any, panels: Sequence[Panel], family_of: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    points = [point for panel in panels for point in panel.points]
    shown = {family_of.get(point.method, "other") for point in points}
    handles = [
        Line2D([], [], linestyle="none", marker=_LOOKS[name][1], color=_LOOKS[name][0],
               markersize=_LOOKS[name][2] ** 0.5, label=name)
        for name in FAMILIES if name in shown
    ]  # fmt: skip
    if not all(point.held for point in points):
        handles.append(
            Line2D([], [], linestyle="none", marker="o", color="#777777", markerfacecolor="white",
                   markersize=6, label="not held on\nsome seed")
        )  # fmt: skip
    if any(len(point.trade_off) > 1 for point in points):
        handles.append(
            Line2D([], [], color="#777777", marker=".", markersize=4, linewidth=0.7,
                   label="its candidates")
        )  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)


Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

Spot = tuple[float, float]

_DISTANCES = (9.0, 13.0, 18.0, 24.0, 36.0, 50.0, 66.0, 84.0, 104.0)
_DIRECTIONS = 16


def place(
    points: Sequence[Spot],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    bars: Sequence[Box] = (),
    radius: float = 8.0,
) -> list[Spot]:
    """Find a place for the label of each point, one after another, the most crowded first.

    Args:
        points: In pixels.
        sizes: Widths and heights of the labels, in pixels.
        inside: Labels lie in here if they fit.
        bars: Lines, level or upright, that had better stay uncovered.
        radius: Around each point, which no label should cover.

    Returns:
        The middles of the labels, in the order of the points.
    """
    marks = [_box(point, 2 * radius, 2 * radius) for point in points]
    lines = [(x - 2, y - 2, z + 2, w + 2) for x, y, z, w in bars]
    taken: list[Box] = []
    leaders: list[tuple[Spot, Spot]] = []
    middles: dict[int, Spot] = {}
    for number in sorted(range(len(points)), key=lambda n: (-_crowd(points, n), n)):
        point, (width, height) = points[number], sizes[number]
        best: tuple[float, Spot] | None = None
        for distance, middle in _around(point, width, height):
            box = _box(middle, width, height)
            cost = (
                6 * sum(_common(box, other) for other in taken)
                + 3 * sum(_common(box, mark) for mark in marks)
                + 0.3 * sum(_common(box, line) for line in lines)
                + 20 * (width * height - _common(box, inside))
                + 300 * sum(_crosses(point, middle, *leader) for leader in leaders)
                + 300 * sum(_through(point, middle, other) for other in taken)
                + 300 * sum(_through(*leader, box) for leader in leaders)
                + 3 * distance
            )
            if best is None or cost < best[0]:
                best = (cost, middle)
        assert best is not None
        middles[number] = best[1]
        taken.append(_box(best[1], width, height))
        leaders.append((point, best[1]))
    return [middles[number] for number in range(len(points))]


def _around(point: Spot, width: float, height: float) -> Iterator[tuple[float, Spot]]:
    """Distances from the point to the label's edge, and the label's middle there."""
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            x = point[0] + math.cos(angle) * (distance + width / 2)
            y = point[1] + math.sin(angle) * (distance + height / 2)
            yield distance, (x, y)


def _crowd(points: Sequence[Spot], number: int) -> int:
    return sum(math.dist(points[number], other) < 40 for other in points)


def _box(middle: Spot, width: float, height: float) -> Box:
    x, y = middle
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _common(one: Box, other: Box) -> float:
    """The area of what lies in both."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _through(start: Spot, end: Spot, box: Box) -> bool:
    """Whether a line passes through a box, by a few of its points."""
    steps = [n / 12 for n in range(1, 12)]
    return any(
        box[0] <= start[0] + t * (end[0] - start[0]) <= box[2]
        and box[1] <= start[1] + t * (end[1] - start[1]) <= box[3]
        for t in steps
    )


def _crosses(a: Spot, b: Spot, c: Spot, d: Spot) -> bool:
    def side(p: Spot, q: Spot, r: Spot) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
