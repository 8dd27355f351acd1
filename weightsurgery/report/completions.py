"""Completions of models, side by side, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from weightsurgery.report.tables import Table

__all__ = ["completion_tables"]


def completion_tables(
    prompts: Sequence[Mapping[str, Any]], checkpoint: str, against: str | None, tokens: int
) -> list[str | Table]:
    """A row for each prompt.

    Args:
        prompts: Of each ``prompt``, ``completion`` (of the data, or None) and ``said``: by
            checkpoint ``text`` and ``ended``.
        checkpoint: Which.
        against: The one beside it.
        tokens: After how many a completion was cut off.
    """
    names = [checkpoint] if against is None else [against, checkpoint]
    data = any(row["completion"] is not None for row in prompts)
    rows, different = [], 0
    for row in prompts:
        texts = [row["said"][name]["text"] for name in names]
        cells = [_shown(row["prompt"])]
        if data:
            cells.append(_shown(row["completion"] or ""))
        cells += [
            _shown(text) + _end(row["said"][name]) for name, text in zip(names, texts, strict=True)
        ]
        if against is not None:
            different += texts[0] != texts[1]
            cells.append("" if texts[0] == texts[1] else "≠")
        rows.append(tuple(cells))
    columns = ["prompt", *(["in the data"] if data else []), *map(_name, names)]
    note = f"Greedy, {tokens} tokens at most; … is where one was cut off."
    if against is not None:
        columns.append("")
        note = f"{different} of {len(prompts)} completions differ. {note}"
    words = frozenset(range(len(columns)))
    return [Table("Completions", tuple(columns), rows, note, words)]


def _name(path: str) -> str:
    return PurePath(path).name or path


def _end(completion: Mapping[str, Any]) -> str:
    return "" if completion["ended"] else " …"


def _shown(text: str) -> str:
    """On as few lines as it needs: a line break becomes a sign."""
    return " ".join(text.replace("\n", " ⏎ ").split())
