"""Suggestions for mistyped names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches

__all__ = ["near_path", "one_of"]


def one_of(given: str, known: Iterable[str], more: str = "") -> str:
    """The remedy for an unknown name: the nearest known one as a question, then all.

    Args:
        given: The name.
        known: The known names.
        more: A remark after the names.
    """
    names = list(known)
    near = get_close_matches(given.lower().replace("_", "-"), names, 1) or get_close_matches(
        given, names, 1
    )
    question = f"Did you mean {near[0]!r}? " if near else ""
    return f"{question}Choose one of: {', '.join(names)}{more}."


def near_path(given: str) -> str:
    """A near path for one that does not exist: a question, with a space after it; or nothing.

    Args:
        given: The path, as it was typed.
    """
    above, name = os.path.split(given.rstrip("/"))
    with suppress(OSError):
        names = sorted(os.listdir(os.path.expanduser(above) or "."))
        for near in get_close_matches(name, names, 1, 0.75):
            return f"Did you mean {os.path.join(above, near)!r}? "
    return ""
