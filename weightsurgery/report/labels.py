"""Names beside the points of a picture, where they cover as little as possible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

__all__ = ["Box", "place"]

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


def _crosses(
    a: Spot,
    b: Spot,
    c: Spot,
    d: Spot,
) -> bool:
    def side(p: Spot, q: Spot, r: Spot) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
