"""Tool calls in the forms that chat templates want, and whether a template wrote them out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["forms", "holds", "lost_call"]

_SKIPPED = re.compile(r"[\s\\]+")


def forms(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """A conversation in the forms that templates want it in, the commonest first.

    Arguments of calls are objects for most templates and JSON for some; a call without text has
    empty content for most and none for some (of transformers, null comes to the same). Without
    calls there is one form.
    """
    calls = any(each.get("tool_calls") for each in messages)
    silent = any(each["content"] is None for each in messages)
    for parsed in (True, False) if calls else (True,):
        for nothing in ("", None) if silent else ("",):
            yield [_form(each, parsed, nothing) for each in messages]


def _form(message: Mapping[str, Any], parsed: bool, nothing: str | None) -> dict[str, Any]:
    form = dict(message)
    if form["content"] is None:
        form["content"] = nothing
    if "tool_calls" in form:
        form["tool_calls"] = [_call(each, parsed) for each in form["tool_calls"]]
    return form


def _call(call: Mapping[str, Any], parsed: bool) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _call(call["function"], parsed)}
    arguments = call.get("arguments")
    if parsed and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return dict(call)  # no JSON: a text is all that it is
    elif not parsed and arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return dict(call) if arguments is None else {**call, "arguments": arguments}


def holds(text: str, part: str) -> bool:
    """Whether a rendering holds a text; templates trim, and write JSON."""
    whole = _squeezed(text)
    escaped = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
    return any(_squeezed(each) in whole for each in escaped)


def _squeezed(text: str) -> str:
    return _SKIPPED.sub("", text)


def lost_call(text: str, message: Mapping[str, Any]) -> str | None:
    """Describes the part of a message's calls that a rendering lacks; None if nothing."""
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        name = str(function.get("name", ""))
        if not holds(text, name):
            return f"the tool call {name[:40]!r}"
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        if not all(holds(text, each) for each in _leaves(arguments)):
            return f"arguments of the tool call {name[:40]!r}"
    return None


def _leaves(value: Any) -> Iterator[str]:
    """Every text and number in a JSON value."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)
