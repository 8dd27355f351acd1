"""From what a user types for data to files: ``path``, ``org/name[@revision]``, each ``#part``.

And back: how a record names them, with SHA-256 of their files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.digests import input_sha256
from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.deferred import need
from weightsurgery.errors import DataError
from weightsurgery.learning.files import (
    INSTEAD,
    Row,
    check_part,
    first_line,
    parsed,
    read_rows,
    text_of,
)
from weightsurgery.learning.published import files_within, is_hub_data, on_hub

__all__ = ["DataLocation", "described", "digests", "is_saved", "place_of", "roles", "saved_rows"]


@dataclass(frozen=True)
class DataLocation:
    """Where data lie.

    Attributes:
        root: The file or folder: what no output may touch.
        files: What is read, in order; the root itself if that is a file or a saved data set.
        part: Which split inside the files; None if none is named.
        revision: Commit of a data set on the Hub.
    """

    root: Path
    files: tuple[Path, ...]
    part: str | None = None
    revision: str | None = None

    @property
    def key(self) -> tuple[tuple[str, ...], str | None]:
        """The same for two names of the same data."""
        return tuple(os.path.realpath(each) for each in self.files), self.part

    def rows(self) -> list[Row]:
        """Every row; see :func:`~weightsurgery.learning.files.read_rows`."""
        return [row for file in self.files for row in read_rows(file, self.part)]

    def named(self) -> dict[str, Path]:
        """The files that are read, by distinct names."""
        if self.files != (self.root,):
            return {each.relative_to(self.root).as_posix(): each for each in self.files}
        if not self.root.is_dir():
            return {self.root.name: self.root}
        inside = (each for each in sorted(self.root.rglob("*")) if each.is_file())
        return {each.relative_to(self.root).as_posix(): each for each in inside}

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file that is read."""
        return {name: input_sha256(path) for name, path in self.named().items()}


def place_of(name: str | os.PathLike[str]) -> DataLocation:
    """Find the data behind a name.

    A path that exists is that path. ``NAME#PART`` is a part of it: of a file or a saved data set a
    split, of a folder of files or a repository a configuration, a split or ``config/split``.
    ``org/name[@revision]``, with or without ``datasets/`` before it, is looked up on the Hugging
    Face Hub, through its cache, if nothing here has that name.

    Raises:
        DataError: A folder or repository has no such part, or several and none is named; or there
            is no such repository.
    """
    text, part = os.fspath(name), None
    path = Path(text).expanduser()
    if not path.exists() and "#" in text:
        text, _, part = text.rpartition("#")
        path, part = Path(text).expanduser(), part or None
    if path.is_dir() and not is_saved(path) and any(path.iterdir()):
        return DataLocation(path, tuple(files_within(path, part)))
    if not path.exists() and is_hub_data(text):
        root, files, revision = on_hub(text, part)
        return DataLocation(root, tuple(files), revision=revision)
    return DataLocation(path, (path,), part)


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
        raise DataError(f"{path}: holds several splits", f"Name one of them, as in {path}/train.")
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


Name = str | os.PathLike[str]


def roles(role: str, names: Sequence[Name]) -> dict[str, str]:
    """The key of each data set in the record, and the set's name as given.

    Files of one name in several directories share a role, so a role with several sets is numbered.

    Args:
        role: What the sets are for, as in ``"keep"``.
        names: The sets.

    Returns:
        ``{"keep": ...}`` for one set, ``{"keep.1": ..., "keep.2": ...}`` for several.
    """
    keys = (
        [role] if len(names) == 1 else [f"{role}.{number}" for number in range(1, len(names) + 1)]
    )
    return {key: os.fspath(name) for key, name in zip(keys, names, strict=True)}


def described(
    name: Name, files: Mapping[str, str], facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The record's entry for a data set.

    Args:
        name: As given.
        files: From :func:`digests`.
        facts: How it was read; see :class:`weightsurgery.learning.reading.Reading`.
    """
    entry = {"kind": "data", "name": os.fspath(name), "files": dict(files)}
    facts = dict(facts or {})
    if revision := facts.pop("revision", None):
        entry["revision"] = revision
    return {**entry, "read": facts} if facts else entry


def digests(name: Name) -> dict[str, str]:
    """SHA-256 by file name: of the file, or of each file in a directory that ``datasets`` saved."""
    return place_of(name).digests()
