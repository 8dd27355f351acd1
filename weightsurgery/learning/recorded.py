"""Data sets as a record names them: each in an entry of its own, with SHA-256 of its files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.record import file_sha256

__all__ = ["described", "digests", "roles"]

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


def described(name: Name, files: Mapping[str, str]) -> dict[str, Any]:
    """The record's entry for a data set.

    Args:
        name: As given.
        files: From :func:`digests`.
    """
    return {"kind": "data", "name": os.fspath(name), "files": dict(files)}


def digests(name: Name) -> dict[str, str]:
    """SHA-256 by file name: of the file, or of each file in a directory that ``datasets`` saved."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return {path.name: file_sha256(path)}
    return {each.name: file_sha256(each) for each in sorted(path.iterdir()) if each.is_file()}
