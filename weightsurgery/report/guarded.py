"""The guard's report of an edit as tables: before and after, and some completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from weightsurgery.report.tables import Table, percent

__all__ = ["guard_tables", "look_table", "shown_name"]

_NAMES = {"forget": "to forget", "task": "to learn"}


def guard_tables(guard: Mapping[str, Any]) -> list[str | Table]:
    """The guard's report.

    Args:
        guard: As :meth:`weightsurgery.learning.guard.GuardReport.to_dict` gives it.
    """
    rows = [
        (shown_name(name), percent(before), percent(after))
        for name, (before, after) in guard["answered"].items()
    ]
    before, after = guard["perplexity"]
    rows.append(("perplexity of ordinary language", f"{before:.4g}", f"{after:.4g}"))
    within = "inside" if guard["inside"] else "over"
    rows.append(("divergence there, nats a token", "", f"{guard['divergence']:.2g}"))
    note = (
        "Shares of answers that begin with the truth (in a chat: give it in their first line)."
        " Ordinary language is text that the model wrote itself, given to no training; its"
        f" divergence is {within} the budget of {guard['budget']:g}."
    )
    if not guard["texts"]:
        note = "The model wrote no text by itself: nothing is known of ordinary language."
    table = Table("Before and after", ("", "before", "after"), rows, note)
    shown = [
        (_line(completion["prompt"]) or "(a text's beginning)", _line(completion["before"]),
         _line(completion["after"]))
        for completion in guard["shown"]
    ]  # fmt: skip
    completions = Table(
        "Completions", ("prompt", "before", "after"), shown, left=frozenset({0, 1, 2})
    )
    return [table, completions]


def look_table(looks: Sequence[Mapping[str, Any]], kept_step: int, trained: bool = True) -> Table:
    """Validation while training, step by step.

    Args:
        looks: In order, the first before any step.
        kept_step: The step whose values were kept.
        trained: False for a change that was taken back first, which is look 1.
    """

    def when(step: int) -> str:
        if not trained:
            return {0: "before", 1: "taken back"}.get(step, f"step {step}")
        return f"{step}{' *' if step == kept_step else ''}"

    rows = [
        (
            when(look["step"]),
            percent(look["known"]),
            f"{look['truth']:.2g}",
            f"{look['neighbours']:.2g}",
            f"{look['language']:.2g}",
        )
        for look in looks
    ]
    stranger = looks[0]["stranger"] if looks else 0.0
    note = (
        "Truth likeliest: share of the places where the truth would be said, or is to be, at which"
        f" it is. Its probability is to be {stranger:.2g}. Neighbours and language:"
        f" divergence from before, nats a token.{' * was kept.' if trained else ''}"
    )
    columns = (
        "step" if trained else "",
        "truth likeliest",
        "its probability",
        "neighbours",
        "language",
    )
    return Table("Training" if trained else "The change", columns, rows, note)


def shown_name(name: str) -> str:
    """What a set of the guard is called for people."""
    head, _, tail = name.partition(", ")
    if head in _NAMES:
        return _NAMES[head] + (f", {tail}" if tail else "")
    return f"to keep: {PurePath(name).name}"


def _line(text: str, most: int = 60) -> str:
    """A text on one line, its end cut off where it is long."""
    one = " ".join(text.replace("\n", " ⏎ ").split())
    return one if len(one) <= most else one[: most - 1] + "…"
