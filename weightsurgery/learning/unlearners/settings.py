"""The settings of a method, given by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from weightsurgery.errors import EditError

__all__ = ["NoSettings", "settings_of"]


@dataclass(frozen=True)
class NoSettings:
    """For methods without a setting of their own."""


def settings_of(kind: Any, given: Mapping[str, Any] | None = None) -> Any:
    """A method's settings, some of them given by name; numbers may be whole where they need not.

    Args:
        kind: The method: its ``Settings`` are a dataclass.
        given: By name; the others are the dataclass's.

    Raises:
        EditError: An unknown name, or a value of another type or that makes no sense.
    """
    known = {each.name: each for each in fields(kind.Settings)}
    values = {}
    for name, value in (given or {}).items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise EditError(f"setting {name!r}", f"This method's settings: {listed}.")
        values[name] = _typed(name, value, str(known[name].type))
    return kind.Settings(**values)


def _typed(name: str, value: Any, wanted: str) -> Any:
    if value is None and "None" in wanted:
        return None
    plain = wanted.removesuffix(" | None")
    if isinstance(value, bool):
        fits = plain == "bool"
    elif plain == "float":
        fits = isinstance(value, int | float)
        value = float(value) if fits else value
    else:
        fits = isinstance(value, {"int": int, "str": str}[plain])
    if not fits:
        kinds = {"float": "a number", "int": "a whole number", "str": "a word"}
        raise EditError(f"{name} = {value!r}", f"Give {kinds[plain]}.")
    return value
