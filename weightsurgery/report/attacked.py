"""What attacks brought back, as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightsurgery.report.scores import figure, metric_titles
from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.learning.intervals import Estimate
    from weightsurgery.procedures.attacked import Attack, AttackedSet

__all__ = ["attack_table"]


def attack_table(found: Attack, titles: Mapping[str, str]) -> Table:
    """Scores before and after, the change with its interval, and the same of the control.

    Args:
        found: What was measured.
        titles: Per metric its name for people.
    """
    titles = metric_titles(titles, found.n)
    rows, notes = [], [_told(found)]
    for each in found.sets:
        for attack in found.attacks:
            for name, after in each.checkpoint.after[attack].items():
                rows.append(_row(found, each, attack, name, titles[name]))
                if after.why and attack == found.attacks[0]:
                    notes.append(f"{each.name}, {titles[name]}: {after.why}.")
    columns: tuple[str, ...] = ("set", "", "examples", "metric")
    if len(found.attacks) > 1:
        columns = (*columns, "weights")
    columns = (*columns, "before", "after", "points", "95 % interval")
    left = {0, 1, *range(3, columns.index("before"))}
    if found.against is not None:
        columns = (
            *columns, "control before", "control after", "beyond control", "95 % interval",
        )  # fmt: skip
        notes.append(
            f"Control: {found.against}, attacked in the same way; beyond: the change of"
            f" {found.checkpoint} less the control's."
        )
    word = "relearning" if found.kind == "relearn" else "rounding"
    return Table(
        f"{found.checkpoint} before and after {word}", columns, rows, " ".join(notes),
        frozenset(left),
    )  # fmt: skip


def _told(found: Attack) -> str:
    if found.kind == "quantize":
        return (
            f"Rounded: the weights of {found.layers} linear layers, all but the one that makes"
            " logits."
        )
    count = sum(len(rows) for rows in found.trained_on.values())
    settings = found.settings
    batch = min(settings["batch_size"], count)
    return (
        f"Trained on {count} examples for {settings['steps']} steps of {batch} at"
        f" {settings['learning_rate']:g}; held out are those that speak of others."
    )


def _row(found: Attack, each: AttackedSet, attack: str, name: str, title: str) -> tuple[str, ...]:
    role = f"{each.role}, {each.part}" if each.part else each.role
    after = each.checkpoint.after[attack][name]
    cells: tuple[str, ...] = (each.name, role, str(after.examples), title)
    if len(found.attacks) > 1:
        cells = (*cells, attack)
    cells = (
        *cells,
        figure(name, each.checkpoint.before[name].value),
        figure(name, after.value),
        *_points(each.checkpoint.change[attack].get(name)),
    )
    if each.control is not None and each.beyond is not None:
        cells = (
            *cells,
            figure(name, each.control.before[name].value),
            figure(name, each.control.after[attack][name].value),
            *_points(each.beyond[attack].get(name)),
        )
    return cells


def _points(change: Estimate | None) -> tuple[str, str]:
    """A difference of shares in percentage points; none of what is no share."""
    if change is None or change.value is None:
        return ("", "")
    bounds = change.interval
    return (
        f"{100 * change.value:+.1f}",
        "" if bounds is None else f"{100 * bounds[0]:+.1f} – {100 * bounds[1]:+.1f}",
    )
