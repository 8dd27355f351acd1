"""Data sets as a record names them: each in an entry of its own, with SHA-256 of its files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from weightsurgery.learning.places import place_of

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
