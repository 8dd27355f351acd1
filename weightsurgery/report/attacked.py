"""What attacks brought back, as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightsurgery.report.scores import figure, metric_titles
from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.learning.intervals import Estimate
    from weightsurgery.procedures.attacked import Attack, AttackedModel, AttackedSet

__all__ = ["attack_tables"]


def attack_tables(found: Attack, titles: Mapping[str, str]) -> list[str | Table]:
    """Per attack the scores before and after, the change with its interval, and the control's.

    Args:
        found: What was measured.
        titles: Per metric its name for people.
    """
    titles = metric_titles(titles, found.n)
    word = "relearning" if found.kind == "relearn" else "rounding"
    tables: list[str | Table] = []
    for attack in found.attacks:
        which = f" ({attack})" if len(found.attacks) > 1 else ""
        own = _Rows(f"{found.checkpoint} before and after {word}{which}", "points", _told(found))
        control = _Rows(
            f"The control, {found.against}, attacked in the same way{which}",
            "beyond",
            f"Beyond: the change of {found.checkpoint} less the control's, in points.",
        )
        for each in found.sets:
            own.add(each, titles, each.checkpoint, attack, each.checkpoint.change[attack])
            if each.control is not None and each.beyond is not None:
                control.add(each, titles, each.control, attack, each.beyond[attack])
        tables += [rows.table() for rows in (own, control) if rows.rows]
    return tables


class _Rows:
    """The rows of one table."""

    def __init__(self, title: str, change: str, note: str) -> None:
        self.title, self.change, self.notes = title, change, [note]
        self.rows: list[tuple[str, ...]] = []

    def add(
        self,
        each: AttackedSet,
        titles: Mapping[str, str],
        scores: AttackedModel,
        attack: str,
        changes: Mapping[str, Estimate],
    ) -> None:
        """Rows about a set, of which the first says which."""
        role = f"{each.role}, {each.part}" if each.part else each.role
        for number, (name, after) in enumerate(scores.after[attack].items()):
            whose = ("", "") if number else (each.name, f"{role}, {each.examples} examples")
            before = figure(name, scores.before[name].value)
            points = _points(changes.get(name))
            self.rows.append((*whose, titles[name], before, figure(name, after.value), *points))
            if after.why:  # it is defined on fewer
                self.notes.append(f"{each.name}, {titles[name]}: {after.why}.")

    def table(self) -> Table:
        columns = ("set", "", "metric", "before", "after", self.change, "95 % interval")
        note = " ".join(dict.fromkeys(self.notes))
        return Table(self.title, columns, self.rows, note, frozenset({0, 1, 2}))


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


def _points(change: Estimate | None) -> tuple[str, str]:
    """A difference of shares in percentage points; none of what is no share."""
    if change is None or change.value is None:
        return ("", "")
    bounds = change.interval
    return (
        f"{100 * change.value:+.1f}",
        "" if bounds is None else f"{100 * bounds[0]:+.1f} – {100 * bounds[1]:+.1f}",
    )
