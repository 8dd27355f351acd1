"""Scores of a checkpoint as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.learning.evaluate import Evaluation, SetScores
    from weightsurgery.learning.harness import TaskScore
    from weightsurgery.learning.intervals import Estimate

__all__ = ["evaluation_tables", "figure", "metric_titles", "task_table"]

_PLAIN = {"nll", "perplexity"}
"""Metrics that are no shares, and not shown in percent."""

_ANSWERS = ("begins_with", "contains")

_ANSWER_NOTE = (
    "Begins with, contains: the line that the model itself answers, by whole words, in any case."
    " An exact match says the truth and then nothing more."
)


def evaluation_tables(found: Evaluation, titles: Mapping[str, str]) -> list[str | Table]:
    """Scores of every set, and how far they moved.

    Args:
        found: What was measured.
        titles: Per metric its name for people.
    """
    titles = metric_titles(titles, found.n)
    rows, notes = [], []
    if any(set(_ANSWERS) & set(each.scores) for each in found.sets):
        notes.append(_ANSWER_NOTE)
    for each in found.sets:
        for number, (name, score) in enumerate(each.scores.items()):
            rows.append(_score_row(each, name, titles[name], first=not number))
            notes += [f"{each.name}, {titles[name]}: {score.why}."] if score.why else []
    columns: tuple[str, ...] = ("set", "", "metric", "score", "95 % interval")
    if found.against is not None:
        columns = (*columns, "before")
    title = f"Scores of {found.checkpoint}"
    if found.contexts is not None:
        title += f" ({found.contexts.method}, in-context, weights unchanged)"
        notes.append(_context_note(found))
    note = " ".join(notes)
    tables: list[str | Table] = [Table(title, columns, rows, note, frozenset({0, 1, 2}))]
    if found.against is not None:
        tables.append(_change_table(found, titles))
    return tables


def metric_titles(titles: Mapping[str, str], n: int) -> dict[str, str]:
    """Names of metrics for people, with the length of EL's n-grams."""
    return {**titles, "el": f"{titles.get('el', 'EL')}_{n}"}


def _context_note(found: Evaluation) -> str:
    assert found.contexts is not None
    note = (
        f"In-context: before every query stand an example to forget with a wrong answer and"
        f" {found.contexts.shots} with right ones. Who asks the model otherwise gets what it knows."
    )
    return note if found.against is None else f"{note} {found.against} was asked plainly."


def _score_row(each: SetScores, name: str, title: str, first: bool) -> tuple[str, ...]:
    score = each.scores[name]
    before = () if each.before is None else (figure(name, each.before[name].value),)
    whose = (each.name, f"{each.role}, {each.examples} examples") if first else ("", "")
    # The set has as many; a metric that is defined on fewer says why in a note.
    return (
        *whose,
        title,
        figure(name, score.value),
        _range(name, score.interval),
        *before,
    )


def _change_table(found: Evaluation, titles: Mapping[str, str]) -> Table:
    rows, notes = [], []
    for each in found.sets:
        changes: tuple[tuple[str, float, Mapping[str, Estimate] | None], ...] = (
            ("forgotten", 1, each.forgetting),
            ("forgotten over chance", 1, each.normalised_forgetting),
            ("drift", 100, each.drift),
        )
        for word, factor, estimates in changes:
            for number, (name, change) in enumerate((estimates or {}).items()):
                whose = ("", "") if number else (each.name, word)
                rows.append((*whose, titles[name], *_percent(change, factor)))
                why = change.why if change.why != each.scores[name].why else ""
                notes += [f"{each.name}, {word}, {titles[name]}: {why}."] if why else []
        if each.normalised_forgetting:
            notes.append(f"Chance on {each.name}: {100 * each.chance:.1f} %.")
    notes.append("Forgotten: of what was known before; drift: relative change, either way.")
    columns = ("set", "", "metric", "change", "95 % interval")
    title = f"What changed against {found.against}"
    return Table(title, columns, rows, " ".join(notes), frozenset({0, 1, 2}))


def _percent(change: Estimate, factor: float) -> tuple[str, str]:
    if change.value is None:
        return ("–", "")
    bounds = change.interval
    return (
        f"{factor * change.value:.1f} %",
        "" if bounds is None else f"{factor * bounds[0]:.1f} – {factor * bounds[1]:.1f} %",
    )


def figure(name: str, value: float | None) -> str:
    """A score as text: in percent where it is a share."""
    if value is None:
        return "–"
    return f"{value:.4g}" if name in _PLAIN else f"{100 * value:.1f} %"


def _range(name: str, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    if name in _PLAIN:
        return f"{low:.4g} – {high:.4g}"
    return f"{100 * low:.1f} – {100 * high:.1f} %"


def task_table(scores: Sequence[TaskScore]) -> Table:
    """Figures of lm-evaluation-harness, as it gives them."""
    compared = any(each.before is not None for each in scores)
    rows = []
    for each in scores:
        cells: tuple[str, ...] = (each.task, each.metric, *_with_error(each.value, each.error))
        if compared:
            cells = (*cells, *_with_error(each.before, each.before_error))
        rows.append(cells)
    columns: tuple[str, ...] = ("task", "metric", "value", "±")
    if compared:
        columns = (*columns, "before", "±")
    note = "± is the standard error over the task's examples."
    return Table("Tasks of lm-evaluation-harness", columns, rows, note, frozenset({0, 1}))


def _with_error(value: float | None, error: float | None) -> tuple[str, str]:
    return (
        "–" if value is None else f"{value:.4f}",
        "" if error is None else f"{error:.4f}",
    )
