"""Groups of options as one parameter of a command.

A command takes a group as one parameter (``which: Which``); :func:`options` spreads the group's
fields over the command line and hands them over as one object. Fields may be groups in turn.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

from weightsurgery.checkpoint.afterwards import until_all_is_written
from weightsurgery.cli.paged import Pages

__all__ = ["given", "option_of", "options"]


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Spread parameters that are groups over the command line.

    A switch has the one name ``--NAME``, without the ``--no-NAME`` that Typer would add.
    """
    hints = get_type_hints(command, include_extras=True)
    taken = inspect.signature(command).parameters
    flat = [option for name in taken for option in _flat(name, hints[name], taken[name].default)]

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        drawn = any(values.get(field.name) for field in fields(Pages))
        arguments = {name: _value(name, hints[name], values) for name in taken}
        with until_all_is_written() if drawn else nullcontext():
            command(**arguments)

    spread.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    spread.__annotations__ = {option.name: option.annotation for option in flat}
    return spread


def _flat(name: str, kind: Any, default: Any) -> Iterator[inspect.Parameter]:
    """A parameter as Typer is to see it: itself, or the fields of a group."""
    if _is_group(kind):
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            yield from _flat(field.name, hints[field.name], default)
        return
    if get_args(kind)[:1] == (bool,) and not _names(kind.__metadata__[0]):
        switch = copy(kind.__metadata__[0])
        switch.param_decls = (_dashed(name),)
        kind = Annotated[bool, switch]
    yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _value(name: str, kind: Any, values: Mapping[str, Any]) -> Any:
    """A parameter from what Typer read."""
    if not _is_group(kind):
        return values[name]
    hints = get_type_hints(kind, include_extras=True)
    return kind(
        **{field.name: _value(field.name, hints[field.name], values) for field in fields(kind)}
    )


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def given(group: Any) -> dict[str, Any]:
    """The options of a group that were given, by name: set, listed or switched on."""
    return {
        name: value
        for name, value in vars(group).items()
        if value is not None and value is not False and value != []
    }


def option_of(group: type, name: str) -> str:
    """How a field of a group is called on the command line, dashes included."""
    option = get_type_hints(group, include_extras=True)[name].__metadata__[0]
    return next(iter(_names(option)), _dashed(name))


def _names(option: Any) -> list[str]:
    # Typer's first positional argument is the default, or in an annotation the first name.
    words = (option.default, *(option.param_decls or ()))
    return [word for word in words if isinstance(word, str) and word.startswith("--")]


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
