"""Tables of a study, in which the methods of a bench meet several requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from weightsurgery.lab.bench.figures import (
    ABSENT,
    SHARED,
    any_shared,
    cpu,
    figure,
    is_stage,
    percent,
    seeds_of,
    worst,
    worst_drift,
)
from weightsurgery.lab.bench.results import Summary
from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench, Outcome

__all__ = ["study_tables"]

_Row = tuple[str, str, list["Outcome"]]


def study_tables(bench: Bench) -> list[Table]:
    """The outcome of each request: a table of the stages of sequences, and one of all others.

    Stages ("…, 2 of 4") stand under each other per method, so that one reads down how damage
    adds up; other requests hold the methods side by side.

    Args:
        bench: Its outcomes with a request of a name are shown, the others left out.
    """
    rows = [row for row in bench.by_row() if row[1]]
    stages = [row for row in rows if is_stage(row[1])]
    others = [row for row in rows if not is_stage(row[1])]
    tables = []
    if others:
        ordered = _grouped(others, 1)
        tables.append(_table(bench, f"Request by request, {bench.variant} world", ordered))
    if stages:
        ordered = _grouped(stages, 0)
        tables.append(_table(bench, f"Requests after one another, {bench.variant} world", ordered))
    return tables


def _grouped(rows: Sequence[_Row], place: int) -> list[_Row]:
    """Rows of one method or one request together, groups in the order in which they are met."""
    groups = list(dict.fromkeys(row[place] for row in rows))
    return sorted(rows, key=lambda row: groups.index(row[place]))


def _table(bench: Bench, title: str, rows: Sequence[_Row]) -> Table:
    learning = bench.task == "learn"
    all_outcomes = [outcome for *_, outcomes in rows for outcome in outcomes]
    also = list(dict.fromkeys(key for outcome in all_outcomes for key in outcome.also))
    shared = any_shared(all_outcomes)
    columns = (
        "method", "request",
        *(("reached %",) if learning else ("left %", "forgotten %")),
        *(f"{key} %" for key in also),
        *(("shared kept %",) if shared else ()),
        "worst drift unseen", "of", "held", "CPU s",
    )  # fmt: skip
    cells = [tuple(_cells(*row, also, shared, learning)) for row in rows]
    words = frozenset({0, 1, columns.index("of")})
    return Table(title, columns, cells, _note(bench, all_outcomes, also, shared), words)


def _cells(
    method: str,
    request: str,
    outcomes: Sequence[Outcome],
    also: Sequence[str],
    shared: bool,
    learning: bool,
) -> Iterator[str]:
    yield from (method, request, figure(outcomes, lambda outcome: 100 * outcome.target))
    if not learning:
        yield figure(outcomes, lambda outcome: outcome.forgotten)
    for key in also:
        yield figure(outcomes, lambda outcome, key=key: percent(outcome.also.get(key)))  # type: ignore[misc]
    if shared:
        yield figure(outcomes, _shared_kept)
    yield figure(outcomes, worst_drift)
    yield worst(outcomes)
    yield f"{sum(outcome.qualifies for outcome in outcomes)}/{len(outcomes)}"
    yield figure(outcomes, cpu)


def _shared_kept(outcome: Outcome) -> float | None:
    key = f"{SHARED}.unseen"
    if key not in outcome.keep:
        return None
    return 100 * outcome.keep[key] / outcome.keep_before[key]


def _note(bench: Bench, outcomes: Sequence[Outcome], also: Sequence[str], shared: bool) -> str:
    parts = [f"Seeds {seeds_of(outcomes)}; mean ± standard deviation."]
    if bench.task != "learn":
        parts.append("Left: score on the request. Forgotten: over chance, at most 100.")
    if also:
        bases = [
            (key, [e.also_before[key] for e in outcomes if key in e.also_before]) for key in also
        ]
        shown = [
            f"{key} (base {100 * Summary.of(values).mean:.1f})" if values else key
            for key, values in bases
        ]
        parts.append(f"Further sets, score: {'; '.join(shown)}.")
    if shared:
        parts.append(
            "Shared kept: what is left, in % of the base, of facts that request and keep data both"
            " hold, of people on whom no setting was chosen."
        )
    parts.append(
        "Worst drift: of all tasks to keep, on facts given to no edit and no choice"
        f"{' (so not of shared ones)' if shared else ''}, in % of the base's accuracy; 'of' names"
        f" the task. Held: on how many seeds {bench.threshold:.1%} of"
        " every keep task's validation facts were left;"
    )
    if any(is_stage(outcome.asked) for outcome in outcomes):
        parts.append(
            "a request that no candidate held them for is refused, and changes nothing (in one go,"
            " the least harmful is shown). Left and forgotten: of all requests so far; CPU: of the"
            " latest."
        )
    else:
        parts.append("where not, the least harmful is shown.")
    if any(outcome.cpu_seconds is None for outcome in outcomes):
        parts.append(f"{ABSENT}: not measured.")
    return " ".join(parts)
