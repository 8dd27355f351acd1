"""The command line that records name: as it was typed, or as a recipe stands for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["standing_for", "typed_command"]

# The command line that a recipe stands for, while it runs.
_standing: list[list[str]] = []


@contextmanager
def standing_for(words: Sequence[str]) -> Iterator[None]:
    """Inside, records name this command line: an output does not depend on who typed it."""
    _standing.append(list(words))
    try:
        yield
    finally:
        _standing.pop()


def typed_command() -> list[str]:
    """The command line as typed, or as a recipe stands for it, for the record.

    Raises:
        SourceError: The record could not hold it.
    """
    from weightsurgery.errors import SourceError

    words = _standing[-1] if _standing else ["ws", *sys.argv[1:]]
    for text in words:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise SourceError(
                f"{text!r}: this name is not UTF-8, so no record can hold it",
                "Rename the directory, or link to it under another name.",
            )
    return list(words)
