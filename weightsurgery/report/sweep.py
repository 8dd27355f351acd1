"""A sweep as tables of text, and as the sections of a page."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from weightsurgery.report.scores import change_cells
from weightsurgery.report.tables import Table, percent

if TYPE_CHECKING:
    from weightsurgery.procedures.choice import Cell, FinalScore, Sweep

__all__ = ["failure", "setting", "sweep_sections", "sweep_tables"]

_share = functools.partial(percent, missing="–")


def setting(cell: Cell) -> str:
    """A cell in words."""
    ridge = "" if cell.epsilon is None else f", epsilon {cell.epsilon:g}"
    return f"scale {cell.scale:g}, rank {cell.rank}, side {cell.side}{ridge}"


def sweep_tables(sweep: Sweep, every: bool = False) -> list[str | Table]:
    """The frontier, the choice, and the chosen cell on the test data.

    Args:
        sweep: What was tried.
        every: All cells instead of the frontier.
    """
    tables: list[str | Table] = [
        _cells_table(sweep) if every else _frontier_table(sweep, " All of them: -v.")
    ]
    if sweep.chosen is not None:
        cell = sweep.cells[sweep.chosen]
        tables.append(
            f"Chosen: {setting(cell)}: forgets {cell.forgetting:.1f} % of {sweep.forget_name};"
            f" every keep set keeps {_share(cell.retained)} or more."
        )
    if sweep.test:
        tables.append(_test_table(sweep.test))
    return tables


def failure(sweep: Sweep) -> tuple[str, str]:
    """What to say where no cell qualifies: what is wrong, and what to do about it."""
    wanted = f"keeps {_share(sweep.threshold)} of every keep set and forgets anything"
    if sweep.nearest is None:
        failed = sum(bool(cell.failed) for cell in sweep.cells)
        also = f" ({failed} of {len(sweep.cells)} have no scores)" if failed else ""
        return (
            f"no cell {wanted}: none forgets anything of {sweep.forget_name}{also}",
            "Try larger --scales, larger --epsilons, or another --ranks; see -v for all cells.",
        )
    cell = sweep.cells[sweep.nearest]
    return (
        f"no cell {wanted}; nearest is {setting(cell)}, which keeps {_share(cell.retained)} and"
        f" forgets {cell.forgetting:.1f} %",
        "Try smaller --scales, more of --ranks, --sides or --keep, or a lower --threshold.",
    )


def _frontier_table(sweep: Sweep, hint: str = "") -> Table:
    """The cells worth choosing from; of the keep sets the worst."""
    numbers = list(sweep.frontier)
    if sweep.nearest is not None and sweep.nearest not in numbers:
        numbers.append(sweep.nearest)
    ridges = _ridges(sweep)
    base = (_share(sweep.base_forget), _share(min(sweep.base_keep)))
    rows: list[tuple[str, ...]] = [("base", *[""] * (3 + ridges), *base, "", "")]
    for number in numbers:
        cell = sweep.cells[number]
        scores = (_share(cell.forget), _share(min(cell.keep)))
        rows.append((*_given(sweep, number), *scores, *_moved(cell)))
    failed = sum(bool(cell.failed) for cell in sweep.cells)
    count = f"{len(sweep.frontier)} of {len(sweep.cells)} cells are on the frontier"
    notes = [f"{count}: no other forgets as much and drifts as little.{hint}"]
    notes += [f"{failed} cells have no scores."] if failed else []
    columns = (*_settings(ridges), "forget set", "lowest kept", "forgotten", "worst drift")
    return Table(_title(sweep), columns, rows, " ".join(notes), frozenset({0, 3}))


def _cells_table(sweep: Sweep) -> Table:
    """Every cell, with each keep set's score."""
    ridges = _ridges(sweep)
    base = (_share(sweep.base_forget), *(_share(share) for share in sweep.base_keep))
    rows: list[tuple[str, ...]] = [("base", *[""] * (3 + ridges), *base, "", "")]
    notes = []
    for number, cell in enumerate(sweep.cells):
        if cell.failed:
            notes.append(f"{setting(cell)}: {cell.failed}.")
            rows.append((*_given(sweep, number), *["–"] * (3 + len(sweep.keep_names))))
            continue
        scores = (_share(cell.forget), *(_share(share) for share in cell.keep))
        rows.append((*_given(sweep, number), *scores, *_moved(cell)))
    names = (name.replace(".", ".\n") for name in (sweep.forget_name, *sweep.keep_names))
    columns = (*_settings(ridges), *names, "forgotten", "worst drift")
    return Table(_title(sweep), columns, rows, " ".join(notes), frozenset({0, 3}))


def _title(sweep: Sweep) -> str:
    return f"{sweep.metric.replace('_', ' ').capitalize()} on the data of the choice"


def _ridges(sweep: Sweep) -> bool:
    return any(cell.epsilon is not None for cell in sweep.cells)


def _settings(ridges: bool) -> tuple[str, ...]:
    return ("", "scale", "rank", "side", *(("epsilon",) if ridges else ()))


def _given(sweep: Sweep, number: int) -> tuple[str, ...]:
    cell = sweep.cells[number]
    ridge = ("" if cell.epsilon is None else f"{cell.epsilon:g}",) * _ridges(sweep)
    return (_mark(sweep, number), f"{cell.scale:g}", str(cell.rank), cell.side, *ridge)


def _moved(cell: Cell) -> tuple[str, str]:
    return f"{cell.forgetting:.1f} %", _share(cell.worst_drift)


def _mark(sweep: Sweep, number: int) -> str:
    if number == sweep.chosen:
        return "chosen"
    if number == sweep.nearest:
        return "nearest"
    return "frontier" if number in sweep.frontier else ""


def _test_table(tests: Iterable[FinalScore]) -> Table:
    rows = [
        (
            score.name,
            score.role,
            str(score.examples),
            _share(score.before.value),
            _share(score.after.value),
            *change_cells(score.change, 1 if score.role == "forget" else 100),
        )
        for score in tests
    ]
    columns = ("set", "", "examples", "base", "chosen", "change", "interval")
    note = (
        "Scored once, after the choice. Change: forgotten of what was known, or drift either way;"
        " 95 % intervals by bootstrap over the examples."
    )
    return Table("The chosen cell on test data", columns, rows, note, frozenset({0, 1}))


def sweep_sections(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sections of a page, from what ``ws sweep --json`` prints."""
    from weightsurgery.report.sections import record_section, table_section

    sweep = _read(document)
    tables = [_frontier_table(sweep), *([_test_table(sweep.test)] if sweep.test else [])]
    chosen = [line for line in sweep_tables(sweep) if isinstance(line, str)]
    verdict = chosen or [": ".join(failure(sweep))]
    every = _cells_table(sweep)
    command = document.get("command")
    note = " ".join([*verdict, "Dashed: the frontier."])
    return [
        _drawn(sweep) | {"note": note},
        *map(table_section, tables),
        table_section(replace(every, title="Every cell"), closed=True),
        *([record_section(command) | {"title": "The chosen edit"}] if command else []),
    ]


def _read(document: Mapping[str, Any]) -> Sweep:
    """The sweep that a document holds."""
    from weightsurgery.learning.intervals import Estimate
    from weightsurgery.procedures.choice import Cell, FinalScore, Sweep

    values = {field.name: document[field.name] for field in fields(Sweep)}
    values["cells"] = tuple(Cell(**cell) for cell in values["cells"])
    estimates = ("before", "after", "change")
    values["test"] = tuple(
        FinalScore(**{**score, **{key: Estimate(**score[key]) for key in estimates}})
        for score in values["test"]
    )
    return Sweep(**values)


def _drawn(sweep: Sweep) -> dict[str, Any]:
    """Forgetting against the worst drift: a line per setting along its scales, the frontier."""
    points = [
        {
            "x": 100 * cell.worst_drift,
            "y": cell.forgetting,
            "series": setting(cell).partition(", ")[2],
            "label": f"λ = {cell.scale:g}",
            "mark": _mark(sweep, number),
        }
        for number, cell in enumerate(sweep.cells)
        if cell.worst_drift is not None and cell.forgetting is not None
    ]
    best = [sweep.cells[number] for number in sweep.frontier]
    limit = 100 * (1 - sweep.threshold)
    return {
        "type": "points",
        "title": "Forgetting against the worst keep drift",
        "x": "worst drift of a keep set, %",
        "y": f"forgotten of {sweep.forget_name}, %",
        "points": points,
        "joined": True,
        "frontier": [[100 * (c.worst_drift or 0), c.forgetting or 0] for c in best],
        "limit": {"x": limit, "label": f"loss allowed: {limit:g} %"},
    }
