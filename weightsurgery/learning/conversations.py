"""Conversations as data sets write them, as the one form that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsurgery.errors import DataError

__all__ = ["Conversation", "conversation_of"]

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "model": "assistant",
    "system": "system", "function_call": "call", "tool_call": "call",
    "observation": "tool", "tool": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
"""What ShareGPT's speakers are; a ``call`` is the assistant's."""

_WEIGHTS = ("weight", "train", "training")
"""Whether a turn is to be learnt."""

_PAIR = 'Write {"role": "user", "content": "..."}.'


@dataclass(frozen=True)
class Conversation:
    """The messages of a conversation, and which are to be learnt.

    Attributes:
        messages: ``{"role", "content", ...}``; an assistant's content is None where it only calls.
        tools: What the assistant may call, as JSON schemas; None for none.
        answers: Numbers of the assistant's messages that are to be learnt, from 0.
        untrained: Number of those that the data exclude from training.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    answers: tuple[int, ...]
    untrained: int = 0


def conversation_of(where: str, row: Mapping[str, Any], field: str) -> Conversation:
    """A row's conversation.

    OpenAI's form (``role``, ``content``, ``tool_calls``, ``weight``, older ``function_call``),
    ShareGPT's (``from``, ``value``), and TRL's, whose ``prompt`` and ``completion`` are lists of
    messages, the latter to be learnt. Content in parts of text is joined.

    Args:
        where: What to call the row.
        row: Its fields; ``tools`` (or ``functions``) and ``system`` belong to it.
        field: The one that holds the messages; ``completion`` for TRL's form.

    Raises:
        DataError: A message is malformed, or nobody answers.
    """
    given = row[field]
    before = row["prompt"] if field == "completion" else []
    if not isinstance(given, list) or not isinstance(before, list):
        raise DataError(
            f'{where}: "{field}" is not a list',
            f'Write "{field}": [{{"role": "user", "content": "..."}}, ...].',
        )
    messages = [_message(where, n, each) for n, each in enumerate([*before, *given], start=1)]
    system = row.get("system")
    if isinstance(system, str) and system:
        messages.insert(0, {"role": "system", "content": system})
    for n, message in enumerate(messages, start=1):
        _check_content(where, n, message)
    spoken = [
        n
        for n, message in enumerate(messages)
        if message["role"] == "assistant" and n >= len(messages) - len(given)
    ]
    answers = tuple(n for n in spoken if _learnt(where, messages[n]))
    if not answers:
        raise DataError(
            f"{where}: has no message of the assistant" + (" to be learnt" if spoken else ""),
            'Write the answers as {"role": "assistant", "content": "..."}'
            + (' with "weight": 1.' if spoken else "."),
        )
    for message in messages:
        for name in _WEIGHTS:
            message.pop(name, None)
    return Conversation(messages, _tools(where, row), answers, len(spoken) - len(answers))


def _learnt(where: str, message: Mapping[str, Any]) -> bool:
    for name in _WEIGHTS:
        weight = message.get(name)
        if weight is not None:
            if weight not in (0, 1):
                raise DataError(
                    f'{where}: "{name}" of a message is {str(weight)[:40]}', "Write 0 or 1."
                )
            return bool(weight)
    return True


def _check_content(where: str, number: int, message: Mapping[str, Any]) -> None:
    if message["content"]:
        return
    if message["role"] == "assistant":
        if not message.get("tool_calls"):
            raise DataError(
                f"{where}: the assistant says nothing in message {number}",
                "Write text in every answer, or tool calls, or take the turn out.",
            )
    elif message["content"] is None:
        raise DataError(f'{where}: message {number} lacks a "role" or "content" of text', _PAIR)


def _message(where: str, number: int, given: Any) -> dict[str, Any]:
    if isinstance(given, dict) and "role" not in given and "from" in given:
        return _sharegpt(where, number, given)
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise DataError(f'{where}: message {number} lacks a "role" or "content" of text', _PAIR)
    # In Parquet a message has every field that any message has.
    message = {name: value for name, value in given.items() if value is not None}
    message["content"] = _content(where, number, given.get("content"))
    if message["role"] == "function":
        message["role"] = "tool"
    if isinstance(call := message.pop("function_call", None), dict):
        message.setdefault("tool_calls", [{"type": "function", "function": call}])
    calls = message.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(_function(each), dict) for each in calls)
    ):
        raise DataError(
            f'{where}: "tool_calls" of message {number} is no list of calls',
            'Write [{"type": "function", "function": {"name": "...", "arguments": {}}}].',
        )
    if not calls:
        message.pop("tool_calls", None)
    return message


def _function(call: Any) -> Any:
    return call.get("function", call) if isinstance(call, dict) else None


def _content(where: str, number: int, content: Any) -> str | None:
    """Text, whether in one or in parts."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(
                f'{where}: message {number} lacks a "role" or "content" of text: a part of it is'
                f" {str(kind)[:40]}",
                'Write "content": "..." or "content": [{"type": "text", "text": "..."}].',
            )
        texts.append(text)
    return "".join(texts)


def _sharegpt(where: str, number: int, given: Mapping[str, Any]) -> dict[str, Any]:
    role = _ROLES.get(str(given["from"]).lower())
    if role is None:
        raise DataError(
            f'{where}: message {number} is "from" {str(given["from"])[:40]!r}',
            f"Write one of: {', '.join(_ROLES)}.",
        )
    if role == "call":
        return {"role": "assistant", "content": None, "tool_calls": _calls(where, number, given)}
    more = {name: given[name] for name in _WEIGHTS if given.get(name) is not None}
    return {"role": role, "content": _content(where, number, given.get("value")), **more}


def _calls(where: str, number: int, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        calls = json.loads(given.get("value") or "")
    except (TypeError, ValueError, RecursionError):
        calls = None
    listed = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(each, dict) and "name" in each for each in listed):
        raise DataError(
            f"{where}: message {number} is a call, and no JSON of one",
            'Write "value": "{\\"name\\": \\"...\\", \\"arguments\\": {}}".',
        )
    return [{"type": "function", "function": each} for each in listed]


def _tools(where: str, row: Mapping[str, Any]) -> list[Any] | None:
    """The tools of a row; data sets may write the list as a text."""
    for name in ("tools", "functions"):
        tools = row.get(name)
        if not tools:
            continue
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except (ValueError, RecursionError):
                tools = None
        if not isinstance(tools, list) or not all(isinstance(each, dict) for each in tools):
            raise DataError(
                f'{where}: "{name}" is no list of tools',
                f'Write "{name}": [{{"type": "function", "function": {{"name": "..."}}}}].',
            )
        wrapped: Sequence[Any] = tools
        if name == "functions":
            wrapped = [{"type": "function", "function": each} for each in tools]
        return list(wrapped) or None
    return None
