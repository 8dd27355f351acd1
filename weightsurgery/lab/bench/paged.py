"""A bench as sections of a page: a picture of every panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from weightsurgery.lab.bench.figures import row_name
from weightsurgery.lab.bench.frontier import Panel, families, panels

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench

__all__ = ["bench_sections"]


def bench_sections(benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """A section of type ``points`` for every variant and request.

    Raises:
        DataError: The benches hold no outcome.
    """
    return [_section(panel) for panel in panels(benches)]


def _section(panel: Panel) -> dict[str, Any]:
    family_of, limit = families(), 100 * (1 - panel.threshold)
    done = "Learning" if panel.learning else "Forgetting"
    return {
        "type": "points",
        "title": f"{done} against harm: {row_name(panel.variant, panel.request)}",
        "x": "harm: drift of the worst task to keep, on unseen facts, %",
        "y": "learned, %" if panel.learning else "forgotten over chance, %",
        "note": f"Seeds {', '.join(map(str, panel.seeds))}: means; bars are standard deviations."
        " Hollow: on some seed no candidate kept what it was to keep.",
        "named": True,
        "wide": True,
        "limit": {"x": limit, "label": f"loss allowed: {limit:g} %"},
        "points": [
            {"x": point.harm.mean, "y": point.reached.mean, "label": point.method,
             "series": family_of.get(point.method, "other"), "hollow": not point.held}
            for point in panel.points
        ],
        # From x and y to x and y.
        "bars": [
            bar
            for point in panel.points
            for x, y, dx, dy in [
                (point.harm.mean, point.reached.mean, point.harm.spread, point.reached.spread)
            ]
            for bar in ([max(0.0, x - dx), y, x + dx, y], [x, y - dy, x, y + dy])
        ],
    }  # fmt: skip
