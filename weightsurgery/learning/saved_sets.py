"""Rows of a directory that `datasets.Dataset.save_to_disk` wrote."""

from collections.abc import Iterator
from pathlib import Path

from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.deferred import need
from weightsurgery.errors import DataError
from weightsurgery.learning.files import INSTEAD, Row, check_part, first_line, parsed, text_of

__all__ = ["is_saved", "saved_rows"]


def is_saved(path: Path) -> bool:
    """Whether a directory is a saved data set, of one split or several."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def saved_rows(path: Path, part: str | None = None) -> list[Row]:
    """Every row of a saved data set.

    Args:
        path: A directory that `save_to_disk` wrote.
        part: Of several splits the one wanted, or ``"all"``; None where there is one.

    Raises:
        DataError: It is no such directory, there is no such split or several and none is named,
            or `datasets` is not installed.
    """
    if part is None:
        return list(_saved(path))
    parts = sorted(each.parent.name for each in path.glob("*/state.json"))
    if part != "all":
        check_part(path, part, parts)
    return [row for each in (parts if part == "all" else [part]) for row in _saved(path / each)]


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
    need(f"{path}: saved by datasets", "datasets", extra="eval", instead=INSTEAD, kind=DataError)
    from datasets import load_from_disk

    try:
        rows = load_from_disk(str(path)).to_list()
    except Exception as error:  # what is wrong in there can be anything from Arrow to JSON
        raise DataError(
            f"{path}: cannot be read by datasets: {first_line(error)}", "Save it again."
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
        state_json = parsed(text_of(state))
        names = [each["filename"] for each in state_json["_data_files"]]
        plain = all(Path(each).name == each and each not in ("", "..") for each in names)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{state}: names no files ({first_line(error)})", "Save it again."
        ) from error
    for member in sorted(path.rglob("*")):
        if not member.is_dir() and not is_plain_within(member, path):
            raise DataError(
                f"{member}: leads out of the data set, or is no plain file",
                "Put the file itself in its place.",
            )
    if not plain:
        raise DataError(f"{state}: names files elsewhere", "Save it again, with its files.")
