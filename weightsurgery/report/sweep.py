"""A sweep as tables of text, and as the sections of a page."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from weightsurgery.report.tables import Table, percent

if TYPE_CHECKING:
    from weightsurgery.learning.intervals import Estimate
    from weightsurgery.procedures.choice import Cell, FinalScore, Sweep

__all__ = ["failure", "setting", "sweep_sections", "sweep_tables"]

_share = functools.partial(percent, missing="–")


def setting(cell: Cell) -> str:
    """A cell in words."""
    ridge = "" if cell.epsilon is None else f", epsilon {cell.epsilon:g}"
    return f"scale {cell.scale:g}, rank {cell.rank}, side {cell.side}{ridge}"


def sweep_tables(found: Sweep, every: bool = False) -> list[str | Table]:
    """The frontier, the choice, and the chosen cell on the test data.

    Args:
        found: What was tried.
        every: All cells instead of the frontier.
    """
    tables: list[str | Table] = [
        _cells_table(found) if every else _frontier_table(found, " All of them: -v.")
    ]
    if found.chosen is not None:
        cell = found.cells[found.chosen]
        tables.append(
            f"Chosen: {setting(cell)}: forgets {cell.forgetting:.1f} % of {found.forget_name};"
            f" every keep set keeps {_share(cell.retained)} or more."
        )
    if found.test:
        tables.append(_test_table(found.test))
    return tables


def failure(found: Sweep) -> tuple[str, str]:
    """What to say where no cell qualifies: what is wrong, and what to do about it."""
    wanted = f"keeps {_share(found.threshold)} of every keep set and forgets anything"
    if found.nearest is None:
        failed = sum(bool(cell.failed) for cell in found.cells)
        also = f" ({failed} of {len(found.cells)} have no scores)" if failed else ""
        return (
            f"no cell {wanted}: none forgets anything of {found.forget_name}{also}",
            "Try larger --scales, larger --epsilons, or another --ranks; see -v for all cells.",
        )
    cell = found.cells[found.nearest]
    return (
        f"no cell {wanted}; nearest is {setting(cell)}, which keeps {_share(cell.retained)} and"
        f" forgets {cell.forgetting:.1f} %",
        "Try smaller --scales, more of --ranks, --sides or --keep, or a lower --threshold.",
    )


def _frontier_table(found: Sweep, hint: str = "") -> Table:
    """The cells worth choosing from; of the keep sets the worst."""
    numbers = list(found.frontier)
    if found.nearest is not None and found.nearest not in numbers:
        numbers.append(found.nearest)
    ridges = _ridges(found)
    base = (_share(found.base_forget), _share(min(found.base_keep)))
    rows: list[tuple[str, ...]] = [("base", *[""] * (3 + ridges), *base, "", "")]
    for number in numbers:
        cell = found.cells[number]
        scores = (_share(cell.forget), _share(min(cell.keep)))
        rows.append((*_given(found, number), *scores, *_moved(cell)))
    failed = sum(bool(cell.failed) for cell in found.cells)
    count = f"{len(found.frontier)} of {len(found.cells)} cells are on the frontier"
    notes = [f"{count}: no other forgets as much and drifts as little.{hint}"]
    notes += [f"{failed} cells have no scores."] if failed else []
    columns = (*_settings(ridges), "forget set", "lowest kept", "forgotten", "worst drift")
    return Table(_title(found), columns, rows, " ".join(notes), frozenset({0, 3}))


def _cells_table(found: Sweep) -> Table:
    """Every cell, with each keep set's score."""
    ridges = _ridges(found)
    base = (_share(found.base_forget), *(_share(each) for each in found.base_keep))
    rows: list[tuple[str, ...]] = [("base", *[""] * (3 + ridges), *base, "", "")]
    notes = []
    for number, cell in enumerate(found.cells):
        if cell.failed:
            notes.append(f"{setting(cell)}: {cell.failed}.")
            rows.append((*_given(found, number), *["–"] * (3 + len(found.keep_names))))
            continue
        scores = (_share(cell.forget), *(_share(each) for each in cell.keep))
        rows.append((*_given(found, number), *scores, *_moved(cell)))
    names = (each.replace(".", ".\n") for each in (found.forget_name, *found.keep_names))
    columns = (*_settings(ridges), *names, "forgotten", "worst drift")
    return Table(_title(found), columns, rows, " ".join(notes), frozenset({0, 3}))


def _title(found: Sweep) -> str:
    return f"{found.metric.replace('_', ' ').capitalize()} on the data of the choice"


def _ridges(found: Sweep) -> bool:
    return any(cell.epsilon is not None for cell in found.cells)


def _settings(ridges: bool) -> tuple[str, ...]:
    return ("", "scale", "rank", "side", *(("epsilon",) if ridges else ()))


def _given(found: Sweep, number: int) -> tuple[str, ...]:
    cell = found.cells[number]
    ridge = ("" if cell.epsilon is None else f"{cell.epsilon:g}",) * _ridges(found)
    return (_mark(found, number), f"{cell.scale:g}", str(cell.rank), cell.side, *ridge)


def _moved(cell: Cell) -> tuple[str, str]:
    return f"{cell.forgetting:.1f} %", _share(cell.worst_drift)


def _mark(found: Sweep, number: int) -> str:
    if number == found.chosen:
        return "chosen"
    if number == found.nearest:
        return "nearest"
    return "frontier" if number in found.frontier else ""


def _test_table(tests: Iterable[FinalScore]) -> Table:
    rows = [
        (
            each.name,
            each.role,
            str(each.examples),
            _share(each.before.value),
            _share(each.after.value),
            _scaled(each.change, 1 if each.role == "forget" else 100),
            _interval(each.change, 1 if each.role == "forget" else 100),
        )
        for each in tests
    ]
    columns = ("set", "", "examples", "base", "chosen", "change", "interval")
    note = (
        "Scored once, after the choice. Change: forgotten of what was known, or drift either way;"
        " 95 % intervals by bootstrap over the examples."
    )
    return Table("The chosen cell on test data", columns, rows, note, frozenset({0, 1}))


def _scaled(figure: Estimate, factor: float) -> str:
    return "–" if figure.value is None else f"{factor * figure.value:.1f} %"


def _interval(figure: Estimate, factor: float) -> str:
    if figure.interval is None:
        return ""
    low, high = (factor * each for each in figure.interval)
    return f"{low:.1f} – {high:.1f} %"


def sweep_sections(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sections of a page, from what ``ws sweep --json`` prints."""
    from weightsurgery.report.sections import record_section, table_section

    found = _read(document)
    tables = [_frontier_table(found), *([_test_table(found.test)] if found.test else [])]
    chosen = [each for each in sweep_tables(found) if isinstance(each, str)]
    told = chosen or [": ".join(failure(found))]
    every = _cells_table(found)
    command = document.get("command")
    note = " ".join([*told, "Dashed: the frontier."])
    return [
        _drawn(found) | {"note": note},
        *map(table_section, tables),
        table_section(replace(every, title="Every cell"), closed=True),
        *([record_section(command) | {"title": "The chosen edit"}] if command else []),
    ]


def _read(document: Mapping[str, Any]) -> Sweep:
    """The sweep that a document tells of."""
    from weightsurgery.learning.intervals import Estimate
    from weightsurgery.procedures.choice import Cell, FinalScore, Sweep

    kept = {each.name: document[each.name] for each in fields(Sweep)}
    kept["cells"] = tuple(Cell(**each) for each in kept["cells"])
    estimates = ("before", "after", "change")
    kept["test"] = tuple(
        FinalScore(**{**each, **{key: Estimate(**each[key]) for key in estimates}})
        for each in kept["test"]
    )
    return Sweep(**kept)


def _drawn(found: Sweep) -> dict[str, Any]:
    """Forgetting against the worst drift: a line per setting along its scales, the frontier."""
    points = [
        {
            "x": 100 * cell.worst_drift,
            "y": cell.forgetting,
            "series": setting(cell).partition(", ")[2],
            "label": f"λ = {cell.scale:g}",
            "mark": _mark(found, number),
        }
        for number, cell in enumerate(found.cells)
        if cell.worst_drift is not None and cell.forgetting is not None
    ]
    best = [found.cells[number] for number in found.frontier]
    limit = 100 * (1 - found.threshold)
    return {
        "type": "points",
        "title": "Forgetting against the worst keep drift",
        "x": "worst drift of a keep set, %",
        "y": f"forgotten of {found.forget_name}, %",
        "points": points,
        "joined": True,
        "frontier": [[100 * (c.worst_drift or 0), c.forgetting or 0] for c in best],
        "limit": {"x": limit, "label": f"loss allowed: {limit:g} %"},
    }
