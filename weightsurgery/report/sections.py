"""From what a command prints with ``--json``, or a record, to the sections of a page.

A section is plain JSON: a ``type`` (``map``, ``grid``, ``lines``, ``scores``, ``points``,
``texts``, ``table`` or ``record``), a ``title``, and what that type draws. The page's script, the
pictures for papers and the tests all read these.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from weightsurgery.checkpoint.naming import layer_of
from weightsurgery.learning.metric_names import is_share, titles
from weightsurgery.report.matrices import rounded, tensor_map
from weightsurgery.report.scores import change_text, score_text, task_table
from weightsurgery.report.tables import Table, facts_table, lineage_rows, percent

__all__ = [
    "compared_texts",
    "difference_sections",
    "guard_sections",
    "overlap_sections",
    "record_section",
    "score_sections",
    "table_section",
    "texts_section",
]

Section = dict[str, Any]
Document = Mapping[str, Any]


def table_section(table: Table, closed: bool = False) -> Section:
    """A table; a closed one is folded until a reader opens it."""
    return {
        "type": "table",
        "title": table.title,
        "columns": [heading.replace("\n", "") for heading in table.columns],
        "rows": [list(row) for row in table.rows],
        "left": sorted(table.left),
        "note": table.note,
        "closed": closed,
    }


def record_section(command: Sequence[str], record: Document | None = None) -> Section:
    """The command that reproduces it, and all that is recorded but the tensors' figures."""
    text = json.dumps(_short(record), indent=1, ensure_ascii=False) if record else ""
    return {"type": "record", "title": "How it was made", "command": shlex.join(command),
            "record": text}  # fmt: skip


def _short(value: Any) -> Any:
    """A record without what is of every tensor, its parents' too."""
    if isinstance(value, Mapping):
        left_out = ("tensors", "base_samples")
        return {
            key: _short(item) for key, item in value.items()
            if not (key in left_out and isinstance(item, Mapping))
        }  # fmt: skip
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value


def difference_sections(
    document: Document,
    spectra: Mapping[str, Sequence[float]] | None = None,
    note: str = "",
    unknown: str = "",
) -> list[Section]:
    """Of ``ws diff --json``.

    Args:
        document: The document.
        spectra: Singular values by tensor, where they are known.
        note: What they are of.
        unknown: Why those of a tensor are not there.
    """
    facts = [
        ("size ‖T‖", f"{document['norm']:.4g}"),
        ("relative size ‖T‖/‖W‖", percent(document["relative"], 2)),
        ("tensors", str(len(document["tensors"]))),
        *lineage_rows(document["lineage"]),
    ]
    drawn = tensor_map(
        "Change by layer and module",
        document["tensors"],
        spectra=spectra,
        note=note,
        unknown=unknown,
    )
    return [table_section(facts_table("At a glance", facts)), *([drawn] if drawn else [])]


_PAIR = {"inputs": "inputs", "outputs": "outputs", "cosine": "cosine"}


def overlap_sections(document: Document) -> list[Section]:
    """Of ``ws overlap --json``: every two tasks, and each pair by layer and matrix."""
    from weightsurgery.report.tables import overlap_tables
    from weightsurgery.surgery.overlap import PairOverlap, TensorOverlap

    means = [PairOverlap(**pair) for pair in document["mean"]]
    listed = [
        TensorOverlap(**{**row, "pairs": tuple(PairOverlap(**pair) for pair in row["pairs"])})
        for row in document["tensors"]
    ]
    names = list(dict.fromkeys(name for pair in means for name in (pair.first, pair.second)))
    known = {(pair.first, pair.second): pair.inputs for pair in means}
    known |= {(b, a): value for (a, b), value in known.items()}
    values = [[1.0 if a == b else rounded(known.get((a, b))) for b in names] for a in names]
    labels = {(pair.first, pair.second): f"{pair.first} / {pair.second}" for pair in means}
    layers: dict[str, dict[int, list[float]]] = {}
    rows: list[dict[str, Any]] = []
    for row in document["tensors"]:
        figures: dict[str, Any] = {"name": row["name"]}
        for pair in row["pairs"]:
            label = labels[pair["first"], pair["second"]]
            figures |= {f"{label}: {word}": pair[key] for key, word in _PAIR.items()}
            if row["layer"] is not None:
                layers.setdefault(label, {}).setdefault(row["layer"], []).append(pair["inputs"])
        rows.append(figures)
    chance = rounded(fmean(pair.chance for pair in means))
    sections: list[Section] = [
        {"type": "grid", "title": "Overlap of input spaces", "names": names, "values": values,
         "note": "Mean squared cosine of the principal angles, over all matrices; 1: the same"
         " inputs."},
        _lines("Overlap by layer", "overlap of inputs", layers, {"chance": chance}, 1.0),
    ]  # fmt: skip
    words = {f"{label}: {word}": f"{label}: {word}" for label in labels.values() for word in
             _PAIR.values()}  # fmt: skip
    drawn = tensor_map("Overlap by layer and module", rows, words)
    tables = [table for table in overlap_tables(listed, means) if isinstance(table, Table)][:1]
    return [*sections, *([drawn] if drawn else []), *map(table_section, tables)]


def _lines(
    title: str,
    label: str,
    series: Mapping[str, Mapping[int, Sequence[float]]],
    rules: Mapping[str, float | int | None] | None = None,
    top: float | None = None,
) -> Section:
    """Means by layer, a line for each series."""
    return {
        "type": "lines",
        "title": title,
        "x": "layer",
        "y": label,
        "top": top,
        "rules": dict(rules or {}),
        "series": [
            {
                "name": name,
                "points": [[layer, rounded(fmean(values[layer]))] for layer in sorted(values)],
            }
            for name, values in series.items()
        ],
    }


def survived_sections(tensors: Mapping[str, Document]) -> list[Section]:
    """What discrimination left of a task, by layer; none where there was none."""
    layers: dict[str, dict[int, list[float]]] = {}
    for name, facts in tensors.items():
        layer = layer_of(name)
        if layer is not None and "survived" in facts:
            for key, label in (("survived", "survives discrimination"),
                               ("kept_energy", "kept by truncation, before")):  # fmt: skip
                if key in facts:
                    layers.setdefault(label, {}).setdefault(layer, []).append(facts[key])
    if not layers:
        return []
    drawn = _lines("What survived discrimination", "share of the task's energy", layers, top=1.0)
    return [drawn | {"note": "Means over the matrices of a layer."}]


_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def compared_texts(before: str, after: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """Two texts in parts, each with whether it differs from the other text.

    Returns:
        Of either text its parts in order: ``[text, changed]``.
    """
    a, b = _WORDS.findall(before), _WORDS.findall(after)
    left: list[list[Any]] = []
    right: list[list[Any]] = []
    for op, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for parts, words in ((left, a[i:j]), (right, b[k:m])):
            if words:
                parts.append(["".join(words), op != "equal"])
    return left, right


def texts_section(
    title: str, names: Sequence[str], rows: Sequence[tuple[str, str, Sequence[str]]], note: str = ""
) -> Section:
    """Prompts, what the data has for them, and completions; of two what differs is marked."""
    shown = []
    for prompt, truth, texts in rows:
        sides = compared_texts(*texts) if len(texts) == 2 else [[[texts[0], False]]]
        changed = len(texts) == 2 and texts[0] != texts[1]
        shown.append({"prompt": prompt, "truth": truth, "sides": list(sides), "changed": changed})
    return {"type": "texts", "title": title, "names": list(names), "rows": shown, "note": note}


def guard_sections(guard: Document) -> list[Section]:
    """What the guard of an edit saw: shares before and after, and free continuations."""
    from weightsurgery.report.guarded import guard_tables, shown_name

    rows = [
        {"set": shown_name(name), "metric": "answered with the truth", "share": True,
         "before": [rounded(pair[0]), None, None], "after": [rounded(pair[1]), None, None]}
        for name, pair in guard["answered"].items()
    ]  # fmt: skip
    table, _ = guard_tables(guard)
    assert isinstance(table, Table)
    texts = [
        (row["prompt"] or "(a text's beginning)", "", [row["before"], row["after"]])
        for row in guard["shown"]
    ]
    drawn = [{"type": "scores", "title": "Answers", "rows": rows, "note": ""}] if rows else []
    return [*drawn, table_section(table), texts_section("Completions", ("before", "after"), texts)]


def score_sections(document: Document) -> list[Section]:
    """Of ``ws evaluate --json``: every set's scores with their intervals."""
    called = titles()

    def drawn(score: Document | None) -> list[Any] | None:
        if score is None or score["value"] is None:
            return None
        return [rounded(entry) for entry in (score["value"], *(score["interval"] or (None, None)))]

    compared = document["against"] is not None
    rows, cells = [], []
    for entry in document["sets"]:
        for metric, score in entry["scores"].items():
            before = (entry["before"] or {}).get(metric)
            title = called.get(metric, metric)
            set_name = f"{entry['name']} ({entry['role']})"
            rows.append({"set": set_name, "metric": title,
                         "share": is_share(metric),
                         "before": drawn(before), "after": drawn(score)})  # fmt: skip
            earlier = (score_text(metric, before),) if compared else ()
            change = (change_text(metric, entry),) if compared else ()
            # What a phone shows of a wide table is its beginning.
            cells.append((set_name, title, *earlier, score_text(metric, score), *change,
                          str(entry["examples"])))  # fmt: skip
    between = ("before", "after", "change") if compared else ("score",)
    columns = ("set", "metric", *between, "examples")
    note = "In brackets: 95 % bootstrap intervals over the examples."
    sections: list[Section] = []
    if rows:
        table = Table("Every score", columns, cells, note, frozenset({0, 1}))
        title = "Scores before and after" if compared else "Scores"
        lines = "Lines are 95 % bootstrap intervals over the examples."
        sections = [{"type": "scores", "title": title, "rows": rows, "note": lines},
                    table_section(table)]  # fmt: skip
    if document.get("tasks"):
        sections.append(table_section(task_table(document["tasks"])))
    return sections
