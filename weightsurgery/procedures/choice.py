"""The result of a sweep: its cells, the frontier among them, and the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsurgery.learning import intervals
from weightsurgery.learning.intervals import Estimate

__all__ = ["Cell", "FinalScore", "Sweep", "choose", "frontier", "nearest", "scored"]

# What float64 makes of equal shares.
_EQUAL = 1e-12


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, and its scores on the validation data.

    Attributes:
        scale: λ.
        rank: Factors of the task.
        side: Side of the discrimination.
        epsilon: Ridge of the activation statistics, or of the side soft; None without.
        forget: Score on the data to forget; None where it failed.
        keep: Scores on the keep sets, in their order.
        forgetting: Raw forgetting, ``100 (s0 − s1) / s0`` in percent.
        worst_drift: The largest ``|s1 − s0| / s0`` of the keep sets, a fraction.
        retained: The least ``s1 / s0`` of the keep sets.
        failed: Why there are no scores: weights or predictions are not finite.
    """

    scale: float
    rank: int
    side: str
    epsilon: float | None
    forget: float | None = None
    keep: tuple[float, ...] = ()
    forgetting: float | None = None
    worst_drift: float | None = None
    retained: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class FinalScore:
    """The chosen cell on one test set.

    Attributes:
        name: Of the set.
        role: ``"forget"`` or ``"keep"``.
        examples: Number of examples.
        before: The base's score, with its bootstrap interval.
        after: The edited model's.
        change: Forgetting in percent of a set to forget, drift as a fraction of one to keep.
    """

    name: str
    role: str
    examples: int
    before: Estimate
    after: Estimate
    change: Estimate


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep, and the chosen one.

    Attributes:
        metric: The metric of all scores.
        threshold: The share of the base's score that every keep set must keep.
        forget_name: Name of the validation set to forget.
        keep_names: Names of the keep sets.
        base_forget: The base's score on the set to forget.
        base_keep: The base's scores on the keep sets.
        cells: All cells: by rank, side and ridge as in the grid, and ascending scale.
        frontier: Numbers of the cells that no other beats, by rising drift; see :func:`frontier`.
        chosen: Number of the chosen cell; None where none qualifies. See :func:`choose`.
        nearest: Where none qualifies, the one that comes nearest. See :func:`nearest`.
        test: The chosen cell on the test sets.
    """

    metric: str
    threshold: float
    forget_name: str
    keep_names: tuple[str, ...]
    base_forget: float
    base_keep: tuple[float, ...]
    cells: tuple[Cell, ...]
    frontier: tuple[int, ...]
    chosen: int | None
    nearest: int | None
    test: tuple[FinalScore, ...] = ()


def scored(before: Sequence[float], after: Sequence[float]) -> dict[str, object]:
    """A cell's fields from scores before and after: the set to forget, then those to keep.

    Args:
        before: The base's, all above 0.
        after: The edited model's.
    """
    drifts = [intervals.drift(*pair) for pair in zip(before[1:], after[1:], strict=True)]
    ratios = [s1 / s0 for s0, s1 in zip(before[1:], after[1:], strict=True)]
    return {
        "forget": after[0],
        "keep": tuple(after[1:]),
        "forgetting": intervals.forgetting(before[0], after[0]),
        "worst_drift": max(drift for drift in drifts if not isinstance(drift, str)),
        "retained": min(ratios),
    }


def _figures(cell: Cell) -> tuple[float, float, float] | None:
    """Forget score, worst drift and least retained; None of a cell that failed."""
    if cell.forget is None or cell.worst_drift is None or cell.retained is None:
        return None
    return cell.forget, cell.worst_drift, cell.retained


def frontier(cells: Sequence[Cell]) -> tuple[int, ...]:
    """The cells that no other dominates: as low in forget score and in worst drift, lower in one.

    Returns:
        Their numbers, by rising drift; of equal cells all.
    """
    points = [
        (n, figures[0], figures[1]) for n, cell in enumerate(cells) if (figures := _figures(cell))
    ]
    points.sort(key=lambda point: (point[2], point[1], point[0]))
    front: list[tuple[int, float, float]] = []
    for point in points:
        if not front or point[1] < front[-1][1] or point[1:] == front[-1][1:]:
            front.append(point)
    return tuple(number for number, _, _ in front)


def choose(cells: Sequence[Cell], base_forget: float, threshold: float) -> int | None:
    """The cell that forgets most of those that forget something and keep enough of every keep set.

    Args:
        cells: The cells to choose from.
        base_forget: The base's score on the set to forget.
        threshold: Share of the base's score that every keep set must keep.

    Returns:
        Its number; of equal ones that of the smaller worst drift, then of the smaller scale, then
        the first. None where no cell qualifies.
    """
    best = None
    for number, cell in enumerate(cells):
        figures = _figures(cell)
        if figures is None or figures[0] >= base_forget or figures[2] < threshold - _EQUAL:
            continue
        key = (figures[0], figures[1], cell.scale, number)
        best = key if best is None else min(best, key)
    return None if best is None else best[3]


def nearest(cells: Sequence[Cell], base_forget: float) -> int | None:
    """Of the cells that forget something the one whose worst keep set keeps most.

    Returns:
        Its number; of equal ones that which forgets most. None where no cell forgets anything.
    """
    best = None
    for number, cell in enumerate(cells):
        figures = _figures(cell)
        if figures is None or figures[0] >= base_forget:
            continue
        key = (-figures[2], figures[0], cell.scale, number)
        best = key if best is None else min(best, key)
    return None if best is None else best[3]
