"""Scores of a checkpoint as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsurgery.learning.metric_names import is_share, titles
from weightsurgery.report.tables import Table, percent, percent_range

if TYPE_CHECKING:
    from weightsurgery.learning.evaluate import Evaluation, SetScores
    from weightsurgery.learning.intervals import Estimate

__all__ = ["change_cells", "change_text", "evaluation_tables", "figure", "score_text", "task_table"]

_ANSWERS = ("begins_with", "contains")

_ANSWER_NOTE = (
    "Begins with, contains: the line that the model itself answers, by whole words, in any case."
    " An exact match says the truth and then nothing more."
)


def evaluation_tables(evaluation: Evaluation) -> list[str | Table]:
    """Scores of every set, and how far they moved.

    Args:
        evaluation: What was measured.
    """
    called = titles(evaluation.n)
    rows, notes = [], []
    if any(set(_ANSWERS) & set(scored.scores) for scored in evaluation.sets):
        notes.append(_ANSWER_NOTE)
    for scored in evaluation.sets:
        for number, (name, score) in enumerate(scored.scores.items()):
            rows.append(_score_row(scored, name, called[name], first=not number))
            notes += [f"{scored.name}, {called[name]}: {score.why}."] if score.why else []
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
        tables.append(_change_table(evaluation, called))
    return tables


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
    return (*heading, title, figure(name, score.value), _range(name, score.interval), *before)


def _change_table(evaluation: Evaluation, called: Mapping[str, str]) -> Table:
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
                rows.append((*heading, called[name], *change_cells(change, factor)))
                why = change.why if change.why != scored.scores[name].why else ""
                notes += [f"{scored.name}, {word}, {called[name]}: {why}."] if why else []
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


def figure(name: str, value: float | None, unit: str = " %") -> str:
    """A score as text: in percent where it is a share."""
    if value is None:
        return "–"
    return percent(value, unit=unit) if is_share(name) else f"{value:.4g}"


def _range(name: str, interval: tuple[float, float] | None) -> str:
    if interval is None or is_share(name):
        return percent_range(interval)
    return f"{interval[0]:.4g} – {interval[1]:.4g}"


def score_text(name: str, score: Mapping[str, Any] | None) -> str:
    """A score of a document with its interval in brackets."""
    value, bounds = (score or {}).get("value"), (score or {}).get("interval")
    if value is None or not bounds:
        return figure(name, value)
    low, high = (figure(name, bound, unit="") for bound in bounds)
    return f"{figure(name, value)} [{low}, {high}]"


def change_text(name: str, entry: Mapping[str, Any]) -> str:
    """How far the score of a document's set moved; empty where nothing is known of it."""
    for word, factor, key in (("forgotten", 1.0, "forgetting"), ("drift", 100.0, "drift")):
        change = (entry.get(key) or {}).get(name)
        if change is not None and change["value"] is not None:
            bounds = change.get("interval")
            inside = f" [{factor * bounds[0]:.1f}, {factor * bounds[1]:.1f}]" if bounds else ""
            return f"{word} {factor * change['value']:.1f} %{inside}"
    return ""


def task_table(tasks: Sequence[Mapping[str, Any]]) -> Table:
    """Figures of lm-evaluation-harness, of a document of ``ws evaluate --json``."""
    keys = [("value", "error")]
    if any(task.get("before") is not None for task in tasks):
        keys.insert(0, ("before", "before_error"))
    rows = [
        (task["task"], task["metric"], *(_with_error(*map(task.get, pair)) for pair in keys))
        for task in tasks
    ]
    columns = ("task", "metric", *(name for name, _ in keys))
    note = "± is the standard error over the task's examples."
    return Table("Tasks of lm-evaluation-harness", columns, rows, note, frozenset({0, 1}))


def _with_error(value: float | None, error: float | None) -> str:
    text = "–" if value is None else f"{value:.4f}"
    return text if value is None or error is None else f"{text} ± {error:.4f}"
