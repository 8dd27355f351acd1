"""Rows of a data file: JSONL, JSON, CSV, TSV, Parquet, plain text, packed with gzip or not."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from weightsurgery.deferred import need
from weightsurgery.errors import DataError

__all__ = ["INSTEAD", "Row", "check_part", "first_line", "parsed", "read_rows", "text_of"]

Row = tuple[str, dict[str, Any]]
"""Where it stands, for messages, and its fields."""

INSTEAD = "save the data as JSONL"

# What a file may unpack to: gzip makes a thousandfold of nothing.
_UNPACKED = 4 << 30

_PACKED = {
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
    b"PK\x03\x04": ("zip", "unzip"),
}

# Fields by which an object is a row, and not a file of several splits.
_FIELDS = frozenset(
    ("messages", "conversations", "conversation", "text", "prompt", "completion", "question")
)


def read_rows(path: str | Path, part: str | None = None) -> list[Row]:
    """Reads every row of a data source.

    Args:
        path: A file ending in .csv, .tsv, .parquet, .txt (all of it one text) or .json (one array
            of objects or of texts, an object of several such arrays by split, or lines); any other
            file is JSONL. Text is UTF-8 with or without a byte order mark; what is packed with
            gzip is unpacked. A directory is one written by `save_to_disk` of `datasets`. Cells of
            CSV are text, whatever they look like.
        part: Of several splits the one wanted, or ``"all"``.

    Returns:
        The rows in their order, at least one, each with a name for messages.

    Raises:
        DataError: The source cannot be read or is empty, a row is no object, there is no such
            split or several and none is named, or the library that reads it is not installed.
    """
    path = Path(path).expanduser()
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
        ".txt": _whole,
    }
    if path.is_dir():
        from weightsurgery.learning.places import saved_rows

        rows, part = saved_rows(path, part), None
    elif _ending(path) == ".json":
        rows, part = _json(path, part)
    else:
        rows = list(readers.get(_ending(path), _jsonl)(path))
    if not rows:
        raise DataError(f"{path}: holds no examples", "Write one JSON object per line.")
    return _split_of(path, rows, part)


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _split_of(path: Path, rows: list[Row], part: str | None) -> list[Row]:
    """The rows of one split, where a field ``split`` names the split of each.

    Raises:
        DataError: There is no such split, or there are several and none is named.
    """
    named = [row.get("split") for _, row in rows]
    splits = dict.fromkeys(each for each in named if isinstance(each, str) and each)
    if part == "all" or (part is None and (len(splits) < 2 or None in named)):
        return rows
    check_part(path, part, list(splits))
    return [each for each in rows if each[1].get("split") == part]


def check_part(path: Path, part: str | None, parts: list[str]) -> None:
    """Refuse a split that is not there, or none where there are several.

    Raises:
        DataError: It is not, or there are.
    """
    listed = ", ".join(parts[:12]) + (", ..." if len(parts) > 12 else "")
    if part is None:
        raise DataError(
            f"{path}: holds several splits: {listed}",
            f"Name one of them, as in {path}#{parts[0]}; or take {path}#all.",
        )
    if part not in parts:
        raise DataError(
            f"{path}: has no split {part!r}",
            f"Name one of: {listed}." if parts else f"Leave it out: {path} has no splits.",
        )


def text_of(path: Path) -> str:
    """The text of a file, unpacked, without a byte order mark.

    Raises:
        DataError: It cannot be read, or is no UTF-8 text.
    """
    _refuse_pipe(path)
    try:
        # Newlines as they stand: in CSV, a quoted cell may hold them.
        return _unpacked(path).decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: its gzip is broken: {first_line(error)}", "Download or save it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}", "Save it as UTF-8.") from error


def _unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        begun = file.read(6)
        file.seek(0)
        for mark, (name, program) in _PACKED.items():
            if begun.startswith(mark):
                raise DataError(
                    f"{path}: is compressed with {name}", f"Unpack it with '{program}' first."
                )
        if not begun.startswith(b"\x1f\x8b"):
            return file.read()
        with gzip.open(file) as packed:
            content = packed.read(_UNPACKED + 1)
    if len(content) > _UNPACKED:
        raise DataError(
            f"{path}: unpacks to more than {_UNPACKED >> 30} GiB", "Split it into smaller files."
        )
    return content


def _refuse_pipe(path: Path) -> None:
    """A pipe or a device is waited for, and cannot be read once more to be hashed."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no plain file", "Save the data to a file, and name that.")


def parsed(text: str) -> Any:
    """The value of strict JSON.

    Raises:
        ValueError: It is none, a key stands twice, a number is too long, or half a character.
    """
    value = json.loads(text, object_pairs_hook=_unique)
    if "\\ud" in text.lower():  # the escapes of halves of characters; only pairs mean something
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[:80]!r} stands twice")
    return unique


def _whole(path: Path) -> Iterator[Row]:
    text = text_of(path)
    if text.strip():
        yield str(path), {"text": text}


def _jsonl(path: Path) -> Iterator[Row]:
    yield from _lines(path, text_of(path))


def _lines(path: Path, text: str) -> Iterator[Row]:
    # Only \n ends a line: splitlines() would also break at U+2028, which JSON allows in strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parsed(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: is not JSON: {error.msg} at column {error.colno}",
                "Write one JSON object per line; a file of plain text ends in .txt.",
            ) from error
        except ValueError as error:
            raise DataError(
                f"{where}: {first_line(error)}", "Write one JSON object per line."
            ) from error
        except RecursionError as error:
            raise DataError(f"{where}: is nested too deeply", "Check the line.") from error
        yield where, _object(where, row)


def _object(where: str, row: Any) -> dict[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: is a JSON {type(row).__name__}, not an object",
            'Write {"prompt": "...", "completion": "..."}.',
        )
    return row


def _json(path: Path, part: str | None) -> tuple[list[Row], str | None]:
    """The rows, and the split that is still to be taken from them."""
    text = text_of(path)
    begun = text.lstrip()[:1]
    try:
        document = parsed(text) if begun in ("[", "{") else None
    except (ValueError, RecursionError) as error:
        if begun == "[":
            raise DataError(
                f"{path}: is not JSON: {first_line(error)}", "Write one array of objects."
            ) from error
        document = None  # one object on each line
    if isinstance(document, list):
        return _numbered(str(path), document), part
    if not isinstance(document, dict):
        return list(_lines(path, text)), part
    arrays = all(isinstance(each, list) for each in document.values())
    if not document or not arrays or _FIELDS & document.keys():
        return _numbered(str(path), [document]), part
    wanted = next(iter(document)) if part is None and len(document) == 1 else part
    if wanted != "all":
        check_part(path, wanted, list(document))
    chosen = list(document) if wanted == "all" else [str(wanted)]
    rows = [row for each in chosen for row in _numbered(f"{path}, {each}", document[each])]
    return rows, "all"


def _numbered(where: str, rows: list[Any]) -> list[Row]:
    places = (f"{where}, row {number}" for number in range(1, len(rows) + 1))
    return [(each, _object(each, row)) for each, row in zip(places, rows, strict=True)]


def _csv(path: Path) -> Iterator[Row]:
    separator = "\t" if _ending(path) == ".tsv" else ","
    text = io.StringIO(text_of(path), newline="")
    reader = csv.DictReader(text, strict=True, delimiter=separator)
    limit = csv.field_size_limit(sys.maxsize)  # a cell may hold a book
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
                    "Quote cells that hold commas, or tabs.",
                )
            yield where, dict(row)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: is not CSV: {error}", "Save it as CSV with a heading."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[Row]:
    if not path.exists():
        raise DataError(f"{path}: cannot be read: No such file or directory", "Check the path.")
    _refuse_pipe(path)
    need(f"{path}: is Parquet", "pyarrow", extra="eval", instead=INSTEAD, kind=DataError)
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet: {first_line(error)}", "Save it again."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
