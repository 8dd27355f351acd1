"""From what a user types for data to files: ``path``, ``org/name[@revision]``, each ``#part``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from weightsurgery.checkpoint.record import input_sha256
from weightsurgery.learning.files import Row, read_rows
from weightsurgery.learning.published import files_within, is_hub_data, on_hub
from weightsurgery.learning.saved_sets import is_saved

__all__ = ["DataLocation", "place_of"]


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
