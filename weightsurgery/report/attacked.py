"""What attacks brought back, as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightsurgery.learning.metric_names import titles
from weightsurgery.report.scores import figure
from weightsurgery.report.tables import Table
from weightsurgery.report.yardstick import QUALITY_NOTE

if TYPE_CHECKING:
    from weightsurgery.learning.intervals import Estimate
    from weightsurgery.procedures.attacked import Attack, AttackedModel, AttackedSet

__all__ = ["attack_tables"]


def attack_tables(outcome: Attack) -> list[str | Table]:
    """Per attack the scores before and after, the change with its interval, and the control's.

    Args:
        outcome: What was measured.
    """
    called = titles(outcome.n)
    word = "relearning" if outcome.kind == "relearn" else "rounding"
    tables: list[str | Table] = []
    for attack in outcome.attacks:
        which = f" ({attack})" if len(outcome.attacks) > 1 else ""
        edited = _Rows(
            f"{outcome.checkpoint} before and after {word}{which}", "points", _attack_note(outcome)
        )
        control = _Rows(
            f"The control, {outcome.against}, attacked in the same way{which}",
            "beyond",
            f"Beyond: the change of {outcome.checkpoint} less the control's, in points.",
        )
        for scored in outcome.sets:
            edited.add(scored, called, scored.checkpoint, attack, scored.checkpoint.change[attack])
            if scored.control is not None and scored.beyond is not None:
                control.add(scored, called, scored.control, attack, scored.beyond[attack])
        tables += [rows.table() for rows in (edited, control) if rows.rows]
    if outcome.forget_quality is not None:
        tables.append(_qualities(outcome, outcome.forget_quality))
    return tables


def _qualities(outcome: Attack, qualities: Mapping[str, Mapping[str, float]]) -> Table:
    names = {"checkpoint": outcome.checkpoint, "control": outcome.against or ""}
    return Table(
        f"Forget quality against {outcome.reference}",
        ("", "before", *outcome.attacks),
        [
            (names[model], *(f"{states[name]:.4g}" for name in ("before", *outcome.attacks)))
            for model, states in qualities.items()
        ],
        f"{QUALITY_NOTE} Asked is what the attacker does not have.",
        frozenset({0}),
    )


class _Rows:
    """The rows of one table."""

    def __init__(self, title: str, change: str, note: str) -> None:
        self.title, self.change, self.notes = title, change, [note]
        self.rows: list[tuple[str, ...]] = []

    def add(
        self,
        scored: AttackedSet,
        called: Mapping[str, str],
        scores: AttackedModel,
        attack: str,
        changes: Mapping[str, Estimate],
    ) -> None:
        """Rows about a set, of which the first says which."""
        role = f"{scored.role}, {scored.part}" if scored.part else scored.role
        for number, (name, after) in enumerate(scores.after[attack].items()):
            heading = ("", "") if number else (scored.name, f"{role}, {scored.examples} examples")
            before = figure(name, scores.before[name].value)
            points = _points(changes.get(name))
            self.rows.append((*heading, called[name], before, figure(name, after.value), *points))
            if after.why:  # it is defined on fewer
                self.notes.append(f"{scored.name}, {called[name]}: {after.why}.")

    def table(self) -> Table:
        columns = ("set", "", "metric", "before", "after", self.change, "95 % interval")
        note = " ".join(dict.fromkeys(self.notes))
        return Table(self.title, columns, self.rows, note, frozenset({0, 1, 2}))


def _attack_note(outcome: Attack) -> str:
    if outcome.kind == "quantize":
        return (
            f"Rounded: the weights of {outcome.layers} linear layers, all but the one that makes"
            " logits."
        )
    count = sum(len(rows) for rows in outcome.trained_on.values())
    settings = outcome.settings
    batch = min(settings["batch_size"], count)
    return (
        f"Trained on {count} examples for {settings['steps']} steps of {batch} at"
        f" {settings['learning_rate']:g}; "
        + (
            f"they are those of {', '.join(settings['train'])}."
            if "train" in settings
            else "held out are those that speak of others."
        )
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
