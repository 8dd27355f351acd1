"""Scores of a checkpoint as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from weightsurgery.report.tables import Table, percent, percent_range

if TYPE_CHECKING:
    from weightsurgery.learning.evaluate import Evaluation, SetScores
    from weightsurgery.learning.harness import TaskScore
    from weightsurgery.learning.intervals import Estimate

__all__ = ["change_cells", "evaluation_tables", "figure", "metric_titles", "task_table"]

_PLAIN = {"nll", "perplexity"}
"""Metrics that are no shares, and not shown in percent."""

_ANSWERS = ("begins_with", "contains")

_ANSWER_NOTE = (
    "Begins with, contains: the line that the model itself answers, by whole words, in any case."
    " An exact match says the truth and then nothing more."
)


def evaluation_tables(evaluation: Evaluation, titles: Mapping[str, str]) -> list[str | Table]:
    """Scores of every set, and how far they moved.

    Args:
        evaluation: What was measured.
        titles: Per metric its name for people.
    """
    titles = metric_titles(titles, evaluation.n)
    rows, notes = [], []
    if any(set(_ANSWERS) & set(scored.scores) for scored in evaluation.sets):
        notes.append(_ANSWER_NOTE)
    for scored in evaluation.sets:
        for number, (name, score) in enumerate(scored.scores.items()):
            rows.append(_score_row(scored, name, titles[name], first=not number))
            notes += [f"{scored.name}, {titles[name]}: {score.why}."] if score.why else []
    columns: tuple[str, ...] = ("set", "", "metric", "score", "95 % interval")
    if evaluation.against is not None:
        columns = (*columns, "before")
    title = f"Scores of {evaluation.checkpoint}"
    if evaluation.contexts is not None:
        title += f" ({evaluation.contexts.method}, in-context, weights unchanged)"
        notes.append(_context_note(evaluation))
    note = " ".join(notes)
    tables: list[str | Table] = [Table(title, columns, rows, note, frozenset({0, 1, 2}))]
    if evaluation.against is not None:
        tables.append(_change_table(evaluation, titles))
    return tables


def metric_titles(titles: Mapping[str, str], n: int) -> dict[str, str]:
    """Names of metrics for people, with the length of EL's n-grams."""
    return {**titles, "el": f"{titles.get('el', 'EL')}_{n}"}


def _context_note(evaluation: Evaluation) -> str:
    assert evaluation.contexts is not None
    note = (
        f"In-context: before every query stand an example to forget with a wrong answer and"
        f" {evaluation.contexts.shots} with right ones. Who asks the model otherwise gets what it"
        " knows."
    )
    return note if evaluation.against is None else f"{note} {evaluation.against} was asked plainly."


def _score_row(scored: SetScores, name: str, title: str, first: bool) -> tuple[str, ...]:
    score = scored.scores[name]
    before = () if scored.before is None else (figure(name, scored.before[name].value),)
    heading = (scored.name, f"{scored.role}, {scored.examples} examples") if first else ("", "")
    # The set has as many; a metric that is defined on fewer says why in a note.
    return (
        *heading,
        title,
        figure(name, score.value),
        _range(name, score.interval),
        *before,
    )


def _change_table(evaluation: Evaluation, titles: Mapping[str, str]) -> Table:
    rows, notes = [], []
    for scored in evaluation.sets:
        changes: tuple[tuple[str, float, Mapping[str, Estimate] | None], ...] = (
            ("forgotten", 1, scored.forgetting),
            ("forgotten over chance", 1, scored.normalised_forgetting),
            ("drift", 100, scored.drift),
        )
        for word, factor, estimates in changes:
            for number, (name, change) in enumerate((estimates or {}).items()):
                heading = ("", "") if number else (scored.name, word)
                rows.append((*heading, titles[name], *change_cells(change, factor)))
                why = change.why if change.why != scored.scores[name].why else ""
                notes += [f"{scored.name}, {word}, {titles[name]}: {why}."] if why else []
        if scored.normalised_forgetting:
            notes.append(f"Chance on {scored.name}: {percent(scored.chance)}.")
    notes.append("Forgotten: of what was known before; drift: relative change, either way.")
    columns = ("set", "", "metric", "change", "95 % interval")
    title = f"What changed against {evaluation.against}"
    return Table(title, columns, rows, " ".join(notes), frozenset({0, 1, 2}))


def change_cells(change: Estimate, factor: float) -> tuple[str, str]:
    """A change and its interval in percent; ``factor`` is 1 where it is in percent already."""
    if change.value is None:
        return ("–", "")
    return f"{factor * change.value:.1f} %", percent_range(change.interval, factor)


def figure(name: str, value: float | None) -> str:
    """A score as text: in percent where it is a share."""
    if value is None:
        return "–"
    return f"{value:.4g}" if name in _PLAIN else percent(value)


def _range(name: str, interval: tuple[float, float] | None) -> str:
    if interval is None or name not in _PLAIN:
        return percent_range(interval)
    return f"{interval[0]:.4g} – {interval[1]:.4g}"


def task_table(scores: Sequence[TaskScore]) -> Table:
    """Figures of lm-evaluation-harness, as it gives them."""
    compared = any(score.before is not None for score in scores)
    rows = []
    for score in scores:
        cells: tuple[str, ...] = (score.task, score.metric, *_with_error(score.value, score.error))
        if compared:
            cells = (*cells, *_with_error(score.before, score.before_error))
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
