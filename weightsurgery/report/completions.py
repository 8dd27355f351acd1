"""Completions of models, side by side: for a terminal and for a page, from ``ws try --json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from weightsurgery.report.sections import Document, Section, texts_section
from weightsurgery.report.tables import Table

__all__ = ["completion_tables", "try_sections"]


def completion_tables(document: Document) -> list[str | Table]:
    """A row for each prompt."""
    names, note = _names(document), _note(document)
    data = any(row["completion"] is not None for row in document["prompts"])
    rows = []
    for row in document["prompts"]:
        cells = [_shown(row["prompt"]), *([_shown(row["completion"] or "")] if data else [])]
        cells += [_shown(row["said"][name]["text"]) + _end(row["said"][name]) for name in names]
        rows.append((*cells, *(["≠" if _differs(row) else ""] if names[1:] else [])))
    columns = ["prompt", *(["in the data"] if data else []), *map(_name, names)]
    columns += [""] if names[1:] else []
    words = frozenset(range(len(columns)))
    return [Table("Completions", tuple(columns), rows, note, words)]


def try_sections(document: Document) -> list[Section]:
    """The same side by side, what changed marked."""
    names = _names(document)
    rows = [
        (row["prompt"], row["completion"] or "",
         [str(row["said"][name]["text"]) + _end(row["said"][name]) for name in names])
        for row in document["prompts"]
    ]  # fmt: skip
    return [texts_section("Completions", [*map(_name, names)], rows, _note(document))]


def _names(document: Document) -> list[str]:
    """The checkpoints, in the order in which they are shown."""
    return [name for name in (document["against"], document["checkpoint"]) if name is not None]


def _differs(row: Mapping[str, Any]) -> bool:
    return len({completion["text"] for completion in row["said"].values()}) > 1


def _note(document: Document) -> str:
    note = f"Greedy, {document['tokens']} tokens at most; … is where one was cut off."
    if document["against"] is None:
        return note
    prompts = document["prompts"]
    return f"{sum(map(_differs, prompts))} of {len(prompts)} completions differ. {note}"


def _name(path: str) -> str:
    return PurePath(path).name or path


def _end(completion: Mapping[str, Any]) -> str:
    return "" if completion["ended"] else " …"


def _shown(text: str) -> str:
    """On as few lines as it needs: a line break becomes a sign."""
    return " ".join(text.replace("\n", " ⏎ ").split())
