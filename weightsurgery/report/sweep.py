"""A sweep as tables of text, and as a page with its frontier drawn."""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from weightsurgery.report import page
from weightsurgery.report.tables import Table, percent

if TYPE_CHECKING:
    from weightsurgery.learning.intervals import Estimate
    from weightsurgery.procedures.choice import Cell, FinalScore, Sweep

__all__ = ["failure", "setting", "sweep_page", "sweep_tables"]

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
    tables: list[str | Table] = [_cells_table(found) if every else _frontier_table(found)]
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


def _frontier_table(found: Sweep) -> Table:
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
    notes = [f"{count}: no other forgets as much and drifts as little. All of them: -v."]
    notes += [f"{failed} cells have no scores; -v says why."] if failed else []
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


def sweep_page(found: Sweep, base: str, command: str, path: str | os.PathLike[str]) -> None:
    """Write a page about a sweep: forgetting against the worst drift, and every cell.

    Args:
        found: What was tried.
        base: Name of the base.
        command: The command line that does the chosen edit; empty for none.
        path: File to write.

    Raises:
        WeightSurgeryError: matplotlib is missing, or the file cannot be written.
    """
    pyplot = page.load_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 5))
    _draw(axes, found)
    title = "Forgetting against the worst keep drift"
    axes.set_title(title)
    parts = [page.as_svg(figure, title)]
    pyplot.close(figure)
    for item in sweep_tables(found):
        parts.append(
            f"<h2>{html.escape(item.title)}</h2>{page.as_table(item)}"
            if isinstance(item, Table)
            else f"<p>{html.escape(item)}</p>"
        )
    if found.chosen is None:
        parts.append(f"<p>{html.escape(': '.join(failure(found)))}</p>")
    if command:
        line = f'<pre style="white-space: pre-wrap">{html.escape(command)}</pre>'
        parts.append(f"<h2>The chosen edit</h2>{line}")
    cells = page.as_table(_cells_table(found))
    parts.append(f"<details><summary>Every cell</summary>{cells}</details>")
    page.write_page(path, f"Sweep on {base}", parts)


def _draw(axes: Any, found: Sweep) -> None:
    """One line per setting, along its scales; the frontier over them."""
    ladders: dict[str, list[tuple[float, float]]] = {}
    for cell in found.cells:
        if cell.worst_drift is not None and cell.forgetting is not None:
            name = setting(cell).partition(", ")[2]
            ladders.setdefault(name, []).append((100 * cell.worst_drift, cell.forgetting))
    colours = [f"C{n}" for n in range(10)]
    for number, (name, points) in enumerate(ladders.items()):
        color, marker = colours[number % 10], "os^Dv"[number // 10 % 5]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4,
                  alpha=0.6, label=name)  # fmt: skip
    best = [found.cells[number] for number in found.frontier]
    line = [(100 * (c.worst_drift or 0), c.forgetting or 0, c.scale) for c in best]
    if line:
        axes.plot(*zip(*[point[:2] for point in line], strict=True), color="black", linewidth=1,
                  linestyle="--", zorder=1, label="frontier")  # fmt: skip
    for number, (drift, forgotten) in enumerate(dict.fromkeys(point[:2] for point in line)):
        scales = sorted({scale for *point, scale in line if tuple(point) == (drift, forgotten)})
        left = drift > line[-1][0] / 2
        place = (-8 if left else 8, -12 if number % 2 else 5)  # inside, and neighbours apart
        axes.annotate("λ = " + ", ".join(f"{scale:g}" for scale in scales), (drift, forgotten),
                      textcoords="offset points", xytext=place,
                      ha="right" if left else "left", fontsize=8)  # fmt: skip
    if found.chosen is not None:
        cell = found.cells[found.chosen]
        axes.scatter([100 * (cell.worst_drift or 0)], [cell.forgetting], s=120, marker="o",
                     facecolors="none", edgecolors="black", label="chosen", zorder=3)  # fmt: skip
    limit = 100 * (1 - found.threshold)
    axes.axvline(limit, color="gray", linestyle=":", label=f"loss allowed: {limit:g} %")
    axes.set(xlabel="worst drift of a keep set, %", ylabel=f"forgotten of {found.forget_name}, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
