"""TOFU's rows, dealt out: what is taught, what the edits are given, what chooses, what is scored.

Nothing that is scored is given to an edit or chooses a setting, but what is to be forgotten: all of
it is given, since all of it is to go, and its rows are dealt to choosing and scoring.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
AUTHOR = 20
"""Rows of each author, one after another."""

OTHERS = 40
"""Rows of real authors and of world facts, each, that both models are taught besides."""


@dataclass(frozen=True)
class Size:
    """How much of TOFU, and how long.

    Attributes:
        name: What it is called.
        forget: Authors of ``forget01`` to forget, of two.
        keep: Authors of ``retain_perturbed`` to keep, of twenty.
        judged: Rows of these that choose among candidates; twice as many are scored.
        world: Rows of real authors and of world facts, each.
        epochs: Passes by which both models are taught.
        steps: Of every training that forgets.
        candidates: Settings tried of every system.
    """

    name: str
    forget: int
    keep: int
    judged: int
    world: int
    epochs: int
    steps: int
    candidates: int


FULL = Size("full", 2, keep=10, judged=20, world=40, epochs=8, steps=30, candidates=3)
SMALL = Size("small", 1, keep=2, judged=5, world=20, epochs=8, steps=10, candidates=2)


def read(path: Path) -> list[Row]:
    """Rows of a JSONL file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def deal(folder: Path, size: Size) -> dict[str, list[Row]]:
    """Every file that the study works on, by name.

    Args:
        folder: With TOFU's files as ``locuslab/TOFU`` has them, one JSON object a line.
        size: How much of them.

    Raises:
        SystemExit: A file is missing or too short.
    """
    forget = taken(folder, "forget01_perturbed", size.forget * AUTHOR)
    keep = taken(folder, "retain_perturbed", size.keep * AUTHOR)
    authors = taken(folder, "real_authors_perturbed", size.world + OTHERS)
    facts = taken(folder, "world_facts_perturbed", size.world + OTHERS)
    # Taught invented authors alone, a small model gives up what it knew of real ones.
    known = [plain(row) for row in (*authors[size.world :], *facts[size.world :])]
    return {
        "taught": [*map(plain, forget), *map(plain, keep), *known],
        "retrained": [*map(plain, keep), *known],
        "forget": [*map(plain, forget)],
        "keep": [plain(row) for n, row in enumerate(keep) if n % 2 == 0],
        "choose.forget": [row for n, row in enumerate(forget) if n % 5 in (1, 3)],
        "score.forget": [row for n, row in enumerate(forget) if n % 5 not in (1, 3)],
        "choose.keep": _spread([row for n, row in enumerate(keep) if n % 4 == 1], size.judged),
        "score.keep": _spread([row for n, row in enumerate(keep) if n % 4 == 3], 2 * size.judged),
        "real_authors": authors[: size.world],
        "world_facts": facts[: size.world],
        "holdout": [*map(plain, taken(folder, "holdout01", size.forget * AUTHOR))],
    }


def write(folder: Path, files: dict[str, list[Row]]) -> None:
    """Each as JSONL; a file that is the same already stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = folder / f"{name}.jsonl"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many, evenly spaced."""
    count = min(most, len(rows))
    return [rows[n * len(rows) // count] for n in range(count)]


def plain(row: Row) -> Row:
    """Question and answer alone."""
    return {"question": row["question"], "answer": row["answer"]}


def taken(folder: Path, name: str, count: int) -> Sequence[Row]:
    """The first rows of a file.

    Raises:
        SystemExit: The file is missing or too short.
    """
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file\nGive --data a folder with TOFU's files as JSONL.")
    rows = read(path)
    if len(rows) < count:
        raise SystemExit(f"{path}: {len(rows)} rows, and {count} are needed")
    return rows[:count]
