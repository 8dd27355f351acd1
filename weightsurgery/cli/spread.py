"""Groups of options as one parameter of a command.

A command takes a group as one parameter (``which: Which``); :func:`options` spreads the group's
fields over the command line and hands them over as one object.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from weightsurgery.checkpoint.afterwards import until_all_is_written
from weightsurgery.cli.paged import Pages

__all__ = ["option_of", "options"]


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Spread parameters that are groups over the command line."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    flat: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in signature.parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind
            group_hints = get_type_hints(kind, include_extras=True)
            for each in fields(kind):
                flat.append(
                    inspect.Parameter(
                        each.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=_default(each.default),
                        annotation=group_hints[each.name],
                    )
                )
        else:
            kept = parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            flat.append(kept)

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
        pages = any(values[name] for name, kind in groups.items() if kind is Pages)
        with until_all_is_written() if pages else nullcontext():
            command(**values)

    spread.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    spread.__annotations__ = {each.name: each.annotation for each in flat}
    return spread


def option_of(group: type, name: str) -> str:
    """How a field of a group is called on the command line, dashes included."""
    option = get_type_hints(group, include_extras=True)[name].__metadata__[0]
    # Typer's first positional argument is the default, or in an annotation the first name.
    words = (option.default, *(option.param_decls or ()))
    named = (each for each in words if isinstance(each, str) and each.startswith("--"))
    return next(named, f"--{name.replace('_', '-')}")


def _default(value: Any) -> Any:
    return inspect.Parameter.empty if value is MISSING else value
