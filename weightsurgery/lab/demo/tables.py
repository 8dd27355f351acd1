"""The demo's results as tables: the same questions before and after, answers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsurgery.report.tables import Table, percent

if TYPE_CHECKING:
    from weightsurgery.lab.demo.capitals import Chosen, DemoFiles, DemoOutcome
    from weightsurgery.lab.demo.walkthrough import WalkthroughScores

__all__ = ["chosen_table", "comparison_table", "outcome_tables", "place_line"]

_ANSWER = 160  # characters of an answer that a row shows


def place_line(files: DemoFiles) -> str:
    """Which model it is, and where."""
    return f"{files.base} is {files.checkpoint}"


def chosen_table(chosen: Chosen) -> Table:
    """What the model knows, and how much of it an edit is given."""
    rows = [
        (group.name, str(len(group.questions)), group.given, group.questions[0].shown)
        for group in chosen.groups
    ]
    note = "Facts that the model does not know are left out; to be forgotten in every wording."
    columns = ("facts", "number", "given to the edit", "asked, for example")
    return Table("Asked", columns, rows, note, left=frozenset({0, 2, 3}))


def outcome_tables(outcome: DemoOutcome) -> list[str | Table]:
    """Right answers and perplexity before and after, then some answers as they are."""
    rows = [
        (group.name, group.given, str(len(group.questions)), *map(str, group.right))
        for group in outcome.groups
    ]
    rows.append(
        ("prose, perplexity", "never", "", *(f"{value:.1f}" for value in outcome.perplexity))
    )
    note = (
        "Right answers: they begin with the truth, in chat hold it. A good edit brings the first"
        " rows to nothing and leaves the others as they were."
    )
    columns = ("asked for", "given to the edit", "number", "before", "after")
    samples = [
        (sample.prompt, _line(sample.before), _line(sample.after)) for sample in outcome.samples
    ]
    return [
        Table("Before and after", columns, rows, note, left=frozenset({0, 1})),
        Table("Side by side", ("asked", "before", "after"), samples, left=frozenset({0, 1, 2})),
        "What to do next:\n",
        *(f"# {what}\n{command}" for what, command in outcome.onward),
    ]


def comparison_table(scores: WalkthroughScores) -> Table:
    """Accuracy of the base and the edited models, task by task."""
    models = list(scores.scores)
    rows = []
    for name, count in scores.facts.items():
        task, split = name.rsplit(".", 1)
        shares = (percent(scores.scores[model][name]) for model in models)
        rows.append((task, split, str(count), *shares))
    note = (
        "Exact-match accuracy. Negated and projected saw the fine-tunes on the seen facts, trained"
        " the seen facts themselves; nothing saw the unseen ones."
    )
    columns = ("task", "facts", "number", *models)
    return Table("What is left", columns, rows, note, left=frozenset({0, 1}))


def _line(text: str) -> str:
    """An answer on one line, cut where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _ANSWER else f"{flat[:_ANSWER].rstrip()} …"
