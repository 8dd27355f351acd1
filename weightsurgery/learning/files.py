"""Rows of a data file: JSONL, JSON, CSV, Parquet, or a directory saved by `datasets`."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.errors import DataError

__all__ = ["Row", "read_rows"]

Row = tuple[str, dict[str, Any]]
"""Where it stands, for messages, and its fields."""

_INSTALL = "Install it with:  pip install 'weightsurgery[eval]'; or save the data as JSONL."


def read_rows(path: str | Path) -> list[Row]:
    """Reads every row of a data source.

    Args:
        path: A file ending in .csv, .parquet or .json (one array of objects, or lines); any other
            file is JSONL, UTF-8 with or without a byte order mark. A directory is one written by
            `datasets.Dataset.save_to_disk`. Cells of CSV are text, whatever they look like.

    Returns:
        The rows in their order, at least one, each with a name for messages.

    Raises:
        DataError: The source cannot be read or is empty, a row is no object, or the library that
            reads it is not installed.
    """
    path = Path(path).expanduser()
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".csv": _csv,
        ".json": _json,
        ".parquet": _parquet,
    }
    read = _saved if path.is_dir() else readers.get(path.suffix.lower(), _jsonl)
    rows = list(read(path))
    if not rows:
        raise DataError(f"{path}: holds no examples", "Write one JSON object per line.")
    return rows


def _text(path: Path) -> str:
    _refuse_pipe(path)
    try:
        # Newlines as they stand: in CSV, a quoted cell may hold them.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}", "Save it as UTF-8.") from error


def _refuse_pipe(path: Path) -> None:
    """A pipe or a device is waited for, and cannot be read once more to be hashed."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no plain file", "Save the data to a file, and name that.")


def _parsed(text: str) -> Any:
    """Strict JSON.

    Raises:
        ValueError: It is none, a key stands twice, a number is too long, or half a character.
    """
    found = json.loads(text, object_pairs_hook=_unique)
    if "\\ud" in text.lower():  # the escapes of halves of characters; only pairs mean something
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[:80]!r} stands twice")
    return found


def _jsonl(path: Path) -> Iterator[Row]:
    yield from _lines(path, _text(path))


def _lines(path: Path, text: str) -> Iterator[Row]:
    # Only \n ends a line: splitlines() would also break at U+2028, which JSON allows in strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = _parsed(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: is not JSON: {error.msg} at column {error.colno}",
                "Write one JSON object per line.",
            ) from error
        except ValueError as error:
            raise DataError(
                f"{where}: {_first_line(error)}", "Write one JSON object per line."
            ) from error
        except RecursionError as error:
            raise DataError(f"{where}: is nested too deeply", "Check the line.") from error
        yield where, _object(where, row)


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: is a JSON {type(row).__name__}, not an object",
            'Write {"prompt": "...", "completion": "..."}.',
        )
    return row


def _json(path: Path) -> Iterator[Row]:
    text = _text(path)
    if not text.lstrip().startswith("["):
        yield from _lines(path, text)
        return
    try:
        rows = _parsed(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not JSON: {_first_line(error)}", "Write one array of objects."
        ) from error
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield where, _object(where, row)


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(
                f"{path}: its heading has {twice[0][:80]!r} twice", "Name each column once."
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(
                    f"{where}: has another number of cells than the heading",
                    "Quote cells that hold commas.",
                )
            yield where, dict(row)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: is not CSV: {error}", "Save it as CSV with a heading."
        ) from error


def _parquet(path: Path) -> Iterator[Row]:
    if not path.exists():
        raise DataError(f"{path}: cannot be read: No such file or directory", "Check the path.")
    _refuse_pipe(path)
    if find_spec("pyarrow") is None:
        raise DataError(f"{path}: reading Parquet needs pyarrow", _INSTALL)
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet: {_first_line(error)}", "Save it again."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _saved(path: Path) -> Iterator[Row]:
    if (path / "dataset_dict.json").is_file():
        raise DataError(
            f"{path}: holds several splits",
            f"Name one of them, as in {path}/train.",
        )
    if not (path / "state.json").is_file():
        raise DataError(
            f"{path}: a directory, but none written by datasets' save_to_disk",
            "Name a file, or a saved data set.",
        )
    _check_saved(path)
    if find_spec("datasets") is None:
        raise DataError(f"{path}: reading it needs the library datasets", _INSTALL)
    from datasets import load_from_disk

    try:
        rows = load_from_disk(str(path)).to_list()
    except Exception as error:  # what is wrong in there can be anything from Arrow to JSON
        raise DataError(
            f"{path}: cannot be read by datasets: {_first_line(error)}", "Save it again."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _check_saved(path: Path) -> None:
    """Refuse a saved data set whose files lie elsewhere, whatever it says of them.

    Raises:
        DataError: One does, or is no plain file.
    """
    state = path / "state.json"
    try:
        told = _parsed(_text(state))
        names = [each["filename"] for each in told["_data_files"]]
        plain = all(Path(each).name == each and each not in ("", "..") for each in names)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{state}: names no files ({_first_line(error)})", "Save it again."
        ) from error
    for each in sorted(path.rglob("*")):
        if not each.is_dir() and not is_plain_within(each, path):
            raise DataError(
                f"{each}: leads out of the data set, or is no plain file",
                "Put the file itself in its place.",
            )
    if not plain:
        raise DataError(f"{state}: names files elsewhere", "Save it again, with its files.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
