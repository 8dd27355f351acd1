"""The sections of a page about an output of ws, from its record and what else is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, as_recorded, read_record
from weightsurgery.errors import DataError, WeightSurgeryError
from weightsurgery.report.card_scores import check_content
from weightsurgery.report.completions import try_sections
from weightsurgery.report.guarded import look_table
from weightsurgery.report.matrices import tensor_map
from weightsurgery.report.sections import (
    Document,
    Section,
    difference_sections,
    guard_sections,
    overlap_sections,
    record_section,
    score_sections,
    survived_sections,
    table_section,
)
from weightsurgery.report.spectra import Progress, spectra_of_output
from weightsurgery.report.sweep import sweep_sections
from weightsurgery.report.tables import Table, facts_table

__all__ = ["document_of", "output_page", "output_sections", "read_document", "sections_of"]

_KEYS = [field.name for field in fields(EditRecord)]


def document_of(out: str | os.PathLike[str]) -> dict[str, Any]:
    """An output's record, with that of the vector it was made with where that is still there.

    Raises:
        SourceError: It is no output of ws.
        VerificationError: Its record is damaged.
    """
    record = read_record(Path(out))
    document: dict[str, Any] = {"out": os.fspath(out), **vars(record)}
    for source in record.inputs.values():
        directory = Path(str(source.get("name", "")))
        if source.get("kind") != "task-vector" or not directory.is_dir():
            continue
        try:
            vector = read_record(directory)
        except WeightSurgeryError:  # it may have been replaced by anything since
            continue
        if _is_same(directory, vector, source):
            document["vector"] = {"path": str(directory), **vars(vector)}
            break
    return document


def _is_same(directory: Path, vector: EditRecord, source: Mapping[str, Any]) -> bool:
    """Whether a vector still is what an output was made with, by its record's digests."""
    used = source.get("files", {})
    return bool(used) and all(
        vector.files.get(name, {}).get("sha256") == used[name] for name in used
    )


def output_sections(document: Document, progress: Progress | None = None) -> list[Section]:
    """Of a record: the change of each matrix, and the guard's report where there is one.

    Args:
        document: A record as a dictionary; with ``out``, the directory, where shapes and singular
            values can be read; ``vector`` (the same of the vector, and its ``path``) and ``guard``
            where they are known.
        progress: Called as ``progress(stage, done, total)`` in bytes.
    """
    record = EditRecord(**{key: document[key] for key in _KEYS if key in document})
    vector: Document = document.get("vector") or (document if record.kind == "task-vector" else {})
    guard = document.get("guard") or (vector.get("summary") or {}).get("guard")
    summary = vector.get("summary") or {}
    looks = summary.get("looks")
    trained = "strength" not in summary.get("gathered", {})
    tables = [table for table in _facts(record) if isinstance(table, Table)]
    rows = _rows(record, vector, document.get("out"))
    spectra = spectra_of_output(document, rows, progress)
    drawn = tensor_map(
        "Change by layer and module", rows, spectra=spectra.values, note=spectra.note,
        unknown=spectra.unknown,
    )  # fmt: skip
    return [
        *map(table_section, tables),
        *([drawn] if drawn else []),
        *survived_sections(record.tensors),
        *(guard_sections(guard) if guard else []),
        *([table_section(look_table(looks, summary["steps"], trained))] if looks else []),
        record_section(record.command, {key: document[key] for key in _KEYS if key in document}),
    ]


def _facts(record: EditRecord) -> Sequence[str | Table]:
    from weightsurgery.report.exported import written_tables

    if record.kind in ("checkpoint", "adapter") and record.tensors:
        return written_tables(record)
    figures = {key: value for key, value in record.summary.items()
            if isinstance(value, int | float | str)}  # fmt: skip
    rows = [(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
            for key, value in figures.items()]  # fmt: skip
    rows += [("tensors", str(len(record.tensors)))] if "tensors" not in figures else []
    title = record.kind.replace("-", " ").capitalize()
    return [facts_table(title, rows)]


def _rows(record: EditRecord, vector: Document, out: str | None) -> list[dict[str, Any]]:
    """Every tensor's figures: of the record, else of the vector's; with shapes from headers."""
    shapes = {} if out is None else _shapes(out)
    rows = []
    for name, facts in record.tensors.items():
        known = (vector.get("tensors") or {}).get(name, {})
        if "relative_change" in facts:  # the vector's own is of another scale
            known = {key: value for key, value in known.items() if key != "relative"}
        rows.append({"name": name, "shape": shapes.get(name), **known, **facts})
    return rows


def _shapes(out: str) -> dict[str, tuple[int, ...]]:
    try:
        with Checkpoint.open(out) as opened:
            shapes = {name: entry.shape for name, entry in opened.entries.items()}
    except WeightSurgeryError:  # an adapter, statistics
        return {}
    for name in [known for known in shapes if known.endswith("::U")]:
        rows, columns = shapes[name][0], shapes[f"{name[:-3]}::V"][0]
        shapes[name[:-3]] = (rows, columns)
    return shapes


_OF: dict[str, tuple[Callable[[Document], list[Section]], frozenset[str]]] = {
    "evaluate": (score_sections, frozenset({"checkpoint", "sets", "tasks"})),
    "try": (try_sections, frozenset({"checkpoint", "prompts", "tokens"})),
    "sweep": (sweep_sections, frozenset({"cells", "frontier", "threshold"})),
    "overlap": (overlap_sections, frozenset({"mean", "tensors"})),
    "diff": (difference_sections, frozenset({"tensors", "norm", "lineage"})),
    "record": (output_sections, frozenset({"kind", "command", "tensors", "parameters"})),
}
"""What a document of ``--json`` is, by the keys that it has."""

_REMEDY = "Give what ws evaluate, try, sweep, overlap or diff printed with --json."


def sections_of(document: Document) -> list[Section]:
    """The sections of any document that a command printed with ``--json``.

    Raises:
        DataError: It is none of those a page can be made of.
    """
    for build, keys in _OF.values():
        if keys <= set(document):
            return build(document)
    raise DataError("no document that a page can be made of", _REMEDY)


def read_document(file: Path) -> dict[str, Any]:
    """What a command printed with ``--json``.

    Raises:
        DataError: It cannot be read, or is no JSON object.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("not an object")
        return document
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", _REMEDY) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: no JSON document ({error})", _REMEDY) from None


def output_page(
    out: Path,
    files: Sequence[Path] = (),
    guard: Document | None = None,
    progress: Progress | None = None,
) -> tuple[str, list[Section]]:
    """Title and sections of the page about an output, and what else is to stand there.

    Args:
        out: A directory written by ws, or a file that a command printed with ``--json``.
        files: More of such files.
        guard: The guard's report, where the record does not hold it.
        progress: Called as ``progress(stage, done, total)`` in bytes, while matrices are
            decomposed.

    Raises:
        WeightSurgeryError: One of them is nothing that a page can be made of, or scores are of
            other content than the output holds now.
    """
    sections: list[Section] = []
    if out.is_file():
        files, title = (out, *files), out.name
    else:
        with as_recorded(out):
            output = document_of(out)
            edit = output["parameters"].get("edit") or output["kind"]
            title = f"{out.name or out}: {edit}"
            shown = output if guard is None else {**output, "guard": guard}
            sections = output_sections(shown, progress)
    for file in files:
        document = read_document(file)
        if out.is_dir() and _is_about(document, out):
            check_content(document, file, out, read_record(out))
        try:
            added = sections_of(document)
        except DataError as error:
            raise DataError(f"{file}: {error.what}", _REMEDY) from None
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise DataError(f"{file}: damaged ({error!r})", _REMEDY) from None
        # The record, where there is one, stays last.
        sections = [*sections[:-1], *added, *sections[-1:]] if out.is_dir() else sections + added
    return title, sections


def _is_about(document: Document, out: Path) -> bool:
    scored = document.get("checkpoint")
    return "sets" in document and os.path.realpath(str(scored)) == os.path.realpath(out)
