"""What ``ws evaluate --json`` measured, for the model card of the output it measured."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.record import file_sha256, read_record
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import DataError, WeightSurgeryError
from weightsurgery.report.card_text import code, literal, table

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = [
    "EVALUATION",
    "PLAIN",
    "TITLES",
    "change_told",
    "check_content",
    "content_of",
    "read_scores",
    "score_tables",
    "score_told",
    "scores_file",
]

EVALUATION = "evaluation.json"

PLAIN = ("nll", "perplexity", "truth_ratio")  # no shares, and not shown in percent

TITLES = {
    "begins_with": "begins with the truth",
    "contains": "contains the truth",
    "exact_match": "exact match",
    "token_accuracy": "token accuracy",
    "nll": "NLL per token",
    "probability": "P(truth)",
    "probability_per_token": "P(truth) per token",
    "rouge_l_recall": "ROUGE-L recall",
    "rouge_l_f": "ROUGE-L F1",
    "ma": "MA",
    "el": "EL",
    "es": "ES",
    "truth_ratio": "truth ratio",
}

_PATHS = ("checkpoint", "against", "path")


def content_of(checkpoint: str | os.PathLike[str]) -> dict[str, str] | None:
    """What an output holds, for the document of its scores.

    Args:
        checkpoint: What is scored, as the user named it.

    Returns:
        SHA-256, hexadecimal, of each file that its record lists, as it is on disk; None for what
        this tool did not write.
    """
    place = Path(os.path.expanduser(checkpoint))
    if not (place / RECORD_NAME).is_file():
        return None
    try:
        names = [PurePosixPath(name) for name in read_record(place).files]
        inside = [each for each in names if not each.is_absolute() and ".." not in each.parts]
        return {str(each): file_sha256(place / each) for each in inside}
    except (WeightSurgeryError, OSError):  # it can be scored all the same, but not pushed
        return None


def check_content(
    found: Mapping[str, Any], file: str | os.PathLike[str], out: Path, record: EditRecord
) -> None:
    """Refuse scores that were not measured on what an output holds.

    Args:
        found: What :func:`read_scores` read.
        file: Where it was.
        out: The output, verified.
        record: Its record.

    Raises:
        DataError: They are of other content, or do not say of which.
    """
    remedy = f"Score it as it is now:  ws evaluate {out} ... --json > {os.fspath(file)}"
    content = found.get("content")
    if not isinstance(content, Mapping):
        raise DataError(
            f"{os.fspath(file)}: does not say which bytes were scored: they changed meanwhile, or"
            " an older ws wrote it",
            remedy,
        )
    others = [name for name, facts in record.files.items() if content.get(name) != facts["sha256"]]
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise DataError(
            f"{os.fspath(file)}: scores of other content than {out} holds now ({others[0]}{more}"
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
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{os.fspath(file)}: {error.strerror}", remedy) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{os.fspath(file)}: no JSON ({error})", remedy) from None
    if not _fits(found):
        raise DataError(f"{os.fspath(file)}: no document of 'ws evaluate --json'", remedy)
    if found.get("contexts") is not None:
        raise DataError(
            f"{os.fspath(file)}: scores of a model that was asked in a context, which no file of"
            " the output is",
            remedy,
        )
    scored = os.path.realpath(os.path.expanduser(found["checkpoint"]))
    if scored != os.path.realpath(out):
        raise DataError(
            f"{os.fspath(file)}: scores of {found['checkpoint']!r}, which is not {out} seen from"
            " here",
            f"{remedy}, and push from the same directory.",
        )
    if not found["sets"] and not found.get("tasks"):
        raise DataError(f"{os.fspath(file)}: holds no scores", remedy)
    return dict(found)


def _fits(found: Any) -> bool:
    """Whether it is made like an evaluation, as far as the card reads it."""
    return (
        isinstance(found, Mapping)
        and isinstance(found.get("checkpoint"), str)
        and isinstance(found.get("against"), str | None)
        and isinstance(found.get("sets"), list)
        and all(_is_set(each) for each in found["sets"])
        and isinstance(tasks := found.get("tasks", []), list)
        and all(_is_task(each) for each in tasks)
    )


def _is_set(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and all(isinstance(found.get(key), str) for key in ("name", "role"))
        and isinstance(found.get("examples"), int)
        and _is_estimates(found.get("scores"))
        and all(
            found.get(key) is None or _is_estimates(found[key])
            for key in ("before", "forgetting", "normalised_forgetting", "drift")
        )
    )


def _is_estimates(found: Any) -> bool:
    return isinstance(found, Mapping) and all(
        isinstance(each, Mapping)
        and _is_number(each.get("value"))
        and (each.get("interval") is None or _is_interval(each["interval"]))
        for each in found.values()
    )


def _is_interval(found: Any) -> bool:
    return (
        isinstance(found, list)
        and len(found) == 2
        and all(bound is not None and _is_number(bound) for bound in found)
    )


def _is_number(value: Any) -> bool:
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )


def _is_task(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and all(isinstance(found.get(key), str) for key in ("task", "metric"))
        and all(_is_number(found.get(key)) for key in ("value", "error", "before", "before_error"))
    )


def scores_file(found: Sequence[Mapping[str, Any]]) -> bytes:
    """The documents as one file: a list, in which local paths are shown by their last part."""
    return (json.dumps([_shortened(each) for each in found], indent=1) + "\n").encode()


def _shortened(found: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for key, value in found.items():
        if key in _PATHS and isinstance(value, str):
            told[key] = PurePath(value).name if _is_local(value) else value
        elif key == "sets":
            told[key] = [_shortened({**each, "name": _label(each)}) for each in value]
        else:
            told[key] = value
    return told


def _is_local(name: str) -> bool:
    """Whether a name is a path: ``org/name`` alone may be on the Hub."""
    return os.path.exists(os.path.expanduser(name)) or name.count("/") != 1 or name[0] in "/~."


def _label(found: Mapping[str, Any]) -> str:
    return PurePath(found["name"]).name


def score_tables(found: Sequence[Mapping[str, Any]]) -> str:
    """Scores before and after, with intervals, as Markdown."""
    parts = []
    for each in found:
        if each["sets"]:
            parts.append(_sets(each))
        if each.get("tasks"):
            parts.append(_tasks(each["tasks"]))
    return "\n\n".join(parts)


def _sets(found: Mapping[str, Any]) -> str:
    compared = found.get("against") is not None
    rows = []
    for each in found["sets"]:
        for metric, score in each["scores"].items():
            cells = [code(_label(each)), literal(each["role"]), str(each["examples"])]
            cells.append(literal(TITLES.get(metric, metric)))
            if compared:
                cells.append(score_told(metric, (each.get("before") or {}).get(metric)))
            cells.append(score_told(metric, score))
            if compared:
                cells.append(change_told(metric, each))
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
        against = str(found["against"])
        name = PurePath(against).name if _is_local(against) else against
        before = f" Before: {code(name)}."
    return f"{table(columns, rows, frozenset({0, 1, 3}))}\n\n{note}{before}"


def change_told(metric: str, found: Mapping[str, Any]) -> str:
    """How far a set's score moved; empty where nothing is known of it."""
    for word, factor, key in (("forgotten", 1.0, "forgetting"), ("drift", 100.0, "drift")):
        change = (found.get(key) or {}).get(metric)
        if change is not None and change["value"] is not None:
            bounds = change.get("interval")
            inside = f" [{factor * bounds[0]:.1f}, {factor * bounds[1]:.1f}]" if bounds else ""
            return f"{word} {factor * change['value']:.1f} %{inside}"
    return ""


def score_told(metric: str, score: Mapping[str, Any] | None) -> str:
    """A score with its interval, in percent where it is a share."""
    if score is None or score["value"] is None:
        return "–"
    plain = metric in PLAIN

    def told(value: float) -> str:
        return f"{value:.4g}" if plain else f"{100 * value:.1f}"

    bounds = score.get("interval")
    inside = f" [{told(bounds[0])}, {told(bounds[1])}]" if bounds else ""
    return f"{told(score['value'])}{'' if plain else ' %'}{inside}"


def _tasks(found: Sequence[Mapping[str, Any]]) -> str:
    compared = any(each.get("before") is not None for each in found)
    rows = []
    for each in found:
        cells = (code(each["task"]), code(each["metric"]))
        before = (_with_error(each.get("before"), each.get("before_error")),) if compared else ()
        rows.append((*cells, *before, _with_error(each.get("value"), each.get("error"))))
    columns = ("before", "after") if compared else ("value",)
    drawn = table(("task", "metric", *columns), rows, frozenset({0, 1}))
    return f"{drawn}\n\nTasks of lm-evaluation-harness; ± is the standard error over examples."


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
