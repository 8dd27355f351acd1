"""What ``ws evaluate --json`` measured, for the model card of the output it measured."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.digests import file_sha256
from weightsurgery.checkpoint.record import read_record
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import DataError, WeightSurgeryError
from weightsurgery.learning.metric_names import titles
from weightsurgery.report.card_text import code, literal, table
from weightsurgery.report.scores import change_text, score_text, task_table

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = [
    "EVALUATION",
    "check_content",
    "content_of",
    "read_scores",
    "score_tables",
    "scores_file",
]

EVALUATION = "evaluation.json"

_PATHS = ("checkpoint", "against", "path")


def content_of(checkpoint: str | os.PathLike[str]) -> dict[str, str] | None:
    """Digests of an output's files, for the document of its scores.

    Args:
        checkpoint: What is scored, as the user named it.

    Returns:
        SHA-256, hexadecimal, of each file that its record lists, as it is on disk; None for what
        this tool did not write.
    """
    directory = Path(os.path.expanduser(checkpoint))
    if not (directory / RECORD_NAME).is_file():
        return None
    try:
        paths = [PurePosixPath(name) for name in read_record(directory).files]
        inside = [path for path in paths if not path.is_absolute() and ".." not in path.parts]
        return {str(path): file_sha256(directory / path) for path in inside}
    except (WeightSurgeryError, OSError):  # it can be scored all the same, but not pushed
        return None


def check_content(
    document: Mapping[str, Any], file: str | os.PathLike[str], out: Path, record: EditRecord
) -> None:
    """Refuse scores that were not measured on what an output holds.

    Args:
        document: What :func:`read_scores` read.
        file: Where it was.
        out: The output, verified.
        record: Its record.

    Raises:
        DataError: They are of other content, or do not say of which.
    """
    remedy = f"Score it as it is now:  ws evaluate {out} ... --json > {os.fspath(file)}"
    content = document.get("content")
    if not isinstance(content, Mapping):
        raise DataError(
            f"{os.fspath(file)}: does not say which bytes were scored: they changed meanwhile, or"
            " an older ws wrote it",
            remedy,
        )
    changed = [name for name, facts in record.files.items() if content.get(name) != facts["sha256"]]
    if changed:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise DataError(
            f"{os.fspath(file)}: scores of other content than {out} holds now ({changed[0]}{more}"
            " differ)",
            remedy,
        )


def read_scores(file: str | os.PathLike[str], out: Path) -> dict[str, Any]:
    """Read a document of ``ws evaluate --json``.

    Args:
        file: Where it is.
        out: The output that it must be about.

    Raises:
        DataError: It cannot be read, is no such document, or scored something else.
    """
    remedy = f"Score this output:  ws evaluate {out} ... --json > FILE"
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{os.fspath(file)}: {error.strerror}", remedy) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{os.fspath(file)}: no JSON ({error})", remedy) from None
    if not _is_evaluation(document):
        raise DataError(f"{os.fspath(file)}: no document of 'ws evaluate --json'", remedy)
    if document.get("contexts") is not None:
        raise DataError(
            f"{os.fspath(file)}: scores of a model that was asked in a context, which no file of"
            " the output is",
            remedy,
        )
    scored = os.path.realpath(os.path.expanduser(document["checkpoint"]))
    if scored != os.path.realpath(out):
        raise DataError(
            f"{os.fspath(file)}: scores of {document['checkpoint']!r}, which is not {out} seen from"
            " here",
            f"{remedy}, and push from the same directory.",
        )
    if not document["sets"] and not document.get("tasks"):
        raise DataError(f"{os.fspath(file)}: holds no scores", remedy)
    return dict(document)


def _is_evaluation(document: Any) -> bool:
    """Whether it has the structure of an evaluation, as far as the card reads it."""
    return (
        isinstance(document, Mapping)
        and isinstance(document.get("checkpoint"), str)
        and isinstance(document.get("against"), str | None)
        and isinstance(document.get("sets"), list)
        and all(_is_set(entry) for entry in document["sets"])
        and isinstance(tasks := document.get("tasks", []), list)
        and all(_is_task(entry) for entry in tasks)
    )


def _is_set(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and all(isinstance(entry.get(key), str) for key in ("name", "role"))
        and isinstance(entry.get("examples"), int)
        and _is_estimates(entry.get("scores"))
        and all(
            entry.get(key) is None or _is_estimates(entry[key])
            for key in ("before", "forgetting", "normalised_forgetting", "drift")
        )
    )


def _is_estimates(estimates: Any) -> bool:
    return isinstance(estimates, Mapping) and all(
        isinstance(estimate, Mapping)
        and _is_number(estimate.get("value"))
        and (estimate.get("interval") is None or _is_interval(estimate["interval"]))
        for estimate in estimates.values()
    )


def _is_interval(bounds: Any) -> bool:
    return (
        isinstance(bounds, list)
        and len(bounds) == 2
        and all(bound is not None and _is_number(bound) for bound in bounds)
    )


def _is_number(value: Any) -> bool:
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )


def _is_task(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and all(isinstance(entry.get(key), str) for key in ("task", "metric"))
        and all(_is_number(entry.get(key)) for key in ("value", "error", "before", "before_error"))
    )


def scores_file(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """The documents as one file: a list, in which local paths are shown by their last part."""
    return (json.dumps([_shortened(document) for document in documents], indent=1) + "\n").encode()


def _shortened(document: Mapping[str, Any]) -> dict[str, Any]:
    shortened: dict[str, Any] = {}
    for key, value in document.items():
        if key in _PATHS and isinstance(value, str):
            shortened[key] = PurePath(value).name if _is_local(value) else value
        elif key == "sets":
            shortened[key] = [_shortened({**entry, "name": _label(entry)}) for entry in value]
        else:
            shortened[key] = value
    return shortened


def _is_local(name: str) -> bool:
    """Whether a name is a path: ``org/name`` alone may be on the Hub."""
    return os.path.exists(os.path.expanduser(name)) or name.count("/") != 1 or name[0] in "/~."


def _label(entry: Mapping[str, Any]) -> str:
    return PurePath(entry["name"]).name


def score_tables(documents: Sequence[Mapping[str, Any]]) -> str:
    """Scores before and after, with intervals, as Markdown."""
    parts = []
    for document in documents:
        if document["sets"]:
            parts.append(_sets(document))
        if document.get("tasks"):
            parts.append(_tasks(document["tasks"]))
    return "\n\n".join(parts)


def _sets(document: Mapping[str, Any]) -> str:
    compared, called = document.get("against") is not None, titles()
    rows = []
    for entry in document["sets"]:
        for metric, score in entry["scores"].items():
            cells = [code(_label(entry)), literal(entry["role"]), str(entry["examples"])]
            cells.append(literal(called.get(metric, metric)))
            if compared:
                cells.append(score_text(metric, (entry.get("before") or {}).get(metric)))
            cells.append(score_text(metric, score))
            if compared:
                cells.append(change_text(metric, entry))
            rows.append(tuple(cells))
    columns: tuple[str, ...] = ("set", "role", "examples", "metric", "before", "after", "change")
    if not compared:
        columns = ("set", "role", "examples", "metric", "score")
    note = (
        "In brackets: 95 % bootstrap intervals over examples. *forgotten*: of what was known"
        " before; *drift*: relative change, either way."
    )
    before = ""
    if compared:
        against = str(document["against"])
        name = PurePath(against).name if _is_local(against) else against
        before = f" Before: {code(name)}."
    return f"{table(columns, rows, frozenset({0, 1, 3}))}\n\n{note}{before}"


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    listed = task_table(tasks)
    rows = [(code(task), code(metric), *cells) for task, metric, *cells in listed.rows]
    return f"{table(listed.columns, rows, listed.left)}\n\n{listed.title}; {listed.note}"
