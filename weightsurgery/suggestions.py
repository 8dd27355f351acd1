"""What a mistyped name may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["one_of"]


def one_of(given: str, known: Iterable[str], more: str = "") -> str:
    """The remedy where a name is none of those known: the nearest as a question, then all.

    Args:
        given: The name.
        known: What there is.
        more: What else to say, after the names.
    """
    names = list(known)
    near = get_close_matches(given.lower().replace("_", "-"), names, 1) or get_close_matches(
        given, names, 1
    )
    asked = f"Did you mean {near[0]!r}? " if near else ""
    return f"{asked}Choose one of: {', '.join(names)}{more}."
