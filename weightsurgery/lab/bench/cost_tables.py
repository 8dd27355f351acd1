"""The cost of a bench's methods, and their scores and cost in worlds of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightsurgery.errors import DataError
from weightsurgery.lab.bench.figures import (
    ABSENT,
    UNHELD,
    cpu,
    figure,
    is_stage,
    marked,
    megabytes,
    row_name,
    seeds_of,
    worst_drift,
)
from weightsurgery.lab.world.recipe import VARIANTS
from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench, Outcome

__all__ = ["by_variant", "cost_table", "scale_table"]


def cost_table(bench: Bench) -> Table:
    """Time, memory and looks at validation data, per method and request.

    Args:
        bench: At least one outcome.
    """
    rows = [
        (
            row_name(method, request),
            figure(outcomes, cpu),
            figure(outcomes, lambda outcome: outcome.seconds),
            figure(outcomes, megabytes, 0),
            _looks(outcomes),
        )
        for method, request, outcomes in bench.by_row()
    ]
    note = (
        "To make and validate all candidates, everything that is shared between them included."
        " CPU: all threads together. Memory: at the peak, beyond what was held before, the model"
        " itself among that; MB are 10⁶ bytes. Looks: candidates, or looks at validation facts."
    )
    if any(is_stage(outcome.asked) for outcome in bench.outcomes):
        note += " Of several requests after one another: the latest alone."
    return Table("What it costs", ("method", "CPU s", "wall s", "memory MB", "looks"), rows, note)


def _looks(outcomes: Sequence[Outcome]) -> str:
    least, most = (f(outcome.candidates for outcome in outcomes) for f in (min, max))
    return str(most) if least == most else f"{least}–{most}"


def by_variant(benches: Sequence[Bench]) -> list[Bench]:
    """Benches of one variant joined, in the order in which variants are met.

    Raises:
        DataError: They differ in more than the variant.
    """
    joined: dict[str, Bench] = {}
    for bench in benches:
        known = joined.get(bench.variant)
        joined[bench.variant] = bench if known is None else known.merged(bench)
    first, *others = joined.values()
    for other in others:
        for name in ("task", "threshold"):
            if getattr(first, name) != getattr(other, name):
                raise DataError(
                    f"results of different benches: {name} {getattr(first, name)!r} of variant"
                    f" {first.variant} and {getattr(other, name)!r} of {other.variant}",
                    "Print them apart.",
                )
    return list(joined.values())


def scale_table(benches: Sequence[Bench]) -> Table:
    """Worlds beside each other: the rows that stand in two of them at least.

    Args:
        benches: Of several variants, otherwise alike, as :func:`by_variant` gives them.
    """
    rows_of = [
        {(method, request): row for method, request, row in bench.by_row()} for bench in benches
    ]
    keys = list(dict.fromkeys(key for rows in rows_of for key in rows))
    shown = [key for key in keys if sum(key in rows for rows in rows_of) > 1]
    learning = benches[0].task == "learn"
    columns: list[tuple[str, ...]] = [("method", *(row_name(*key) for key in shown))]
    for heading, cell in (
        ("reached %" if learning else "left %", _target),
        ("drift %", lambda row: figure(row, worst_drift)),
        ("CPU s", lambda row: figure(row, cpu)),
        ("MB", lambda row: figure(row, megabytes, 0)),
    ):
        group = [
            (
                f"{heading} {bench.variant}",
                *(cell(rows[key]) if key in rows else ABSENT for key in shown),
            )
            for bench, rows in zip(benches, rows_of, strict=True)
        ]
        if any(text != ABSENT for _, *texts in group for text in texts):
            columns += group
    head, *cells = zip(*columns, strict=True)
    scale, note = _sizes(benches)
    if len(shown) < len(keys):
        note += " Rows of one variant alone are left out."
    if any("*" in text for row in cells for text in row):
        note += f" {UNHELD}"
    return Table("Scale" if scale else "World by world", head, cells, note)


def _target(outcomes: Sequence[Outcome]) -> str:
    return marked(figure(outcomes, lambda outcome: 100 * outcome.target), outcomes)


def _sizes(benches: Sequence[Bench]) -> tuple[bool, str]:
    """Whether these are models of different sizes, and the note below the table."""
    seeds = (f"{bench.variant} {seeds_of(bench.outcomes)}" for bench in benches)
    note = (
        f"Mean ± standard deviation over the seeds ({'; '.join(seeds)}). Drift: of the worst task"
        " to keep, on unseen facts."
    )
    widths = {bench.variant: VARIANTS[bench.variant].width for bench in benches
              if bench.variant in VARIANTS}  # fmt: skip
    if len(set(widths.values())) < len(benches):
        return False, note
    sizes = ", ".join(f"{name} {width}" for name, width in widths.items())
    return True, f"{note} Hidden size: {sizes}."
