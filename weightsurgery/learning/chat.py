"""Conversations as prompts and completions, rendered by the model's own chat template."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError

__all__ = ["turns"]


def turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], where: str
) -> list[tuple[str, str]]:
    """Each assistant turn of a conversation, as a completion of what precedes it.

    Args:
        tokenizer: With a chat template.
        messages: `{"role": ..., "content": ...}`, both text, in order.
        where: What to call the conversation in messages.

    Returns:
        Per assistant turn the rendered text before it and its own, the marks of its beginning in
        the former and of its end in the latter; the two joined are the template's own rendering
        of the conversation up to there.

    Raises:
        DataError: There is no template or no assistant turn, a message is malformed, or the
            template fails or renders a turn differently depending on what follows.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: holds messages, but the model's tokenizer has no chat template",
            "Write prompts and completions, or name a chat model.",
        )
    if _raises_to_powers(str(tokenizer.chat_template)):
        raise DataError(
            f"{where}: the chat template raises numbers to powers (**), which may never end",
            "Write prompts and completions as the model should see them.",
        )
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not all(
            isinstance(message.get(field), str) for field in ("role", "content")
        ):
            raise DataError(
                f'{where}: message {number} lacks a "role" or "content" of text',
                'Write {"role": "user", "content": "..."}.',
            )
    plain = [{"role": each["role"], "content": each["content"]} for each in messages]
    found = [
        _turn(tokenizer, plain[: index + 1], where)
        for index, message in enumerate(plain)
        if message["role"] == "assistant"
    ]
    if not found:
        raise DataError(
            f"{where}: has no message of the assistant",
            'Write the answers as {"role": "assistant", "content": "..."}.',
        )
    return found


@lru_cache(16)
def _raises_to_powers(template: str) -> bool:
    """Whether a template holds ``**``: one such step can take for ever, and none needs it."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        return any(value == "**" for _, kind, value in Environment().lex(template)
                   if kind == "operator")  # fmt: skip
    except TemplateSyntaxError:
        return False  # whoever compiles it says so


def _turn(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], where: str
) -> tuple[str, str]:
    if not messages[-1]["content"]:
        raise DataError(f"{where}: the assistant says nothing", "Write text in every answer.")
    whole = _render(tokenizer, messages, where)
    # With the mark that the assistant begins, as generation sees it; some templates have none.
    for mark in (True, False):
        prompt = _render(tokenizer, messages[:-1], where, mark)
        if whole.startswith(prompt) and messages[-1]["content"].strip() in whole[len(prompt) :]:
            return prompt, whole[len(prompt) :]
    raise DataError(
        f"{where}: the chat template renders the turns before an answer differently with it",
        "Write prompts and completions as the model should see them.",
    )


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    try:
        with _bounded():
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
    except Exception as error:  # a template is a program: it can fail in any way
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{where}: the chat template fails: {lines[0]}",
            "Check the roles and their order; an answer needs a question before it.",
        ) from error


# What rendering one conversation may take, in seconds of its thread: real templates take a
# thousandth of one.
_SECONDS = 10.0
_BYTES = 2 << 30


class _TooLongError(Exception):
    """A template that does not come to an end."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Inside, a template that takes too long or too much memory fails.

    Its sandbox keeps it from files and the network, but not from counting to a billion. Time is
    looked at line by line; where a debugger looks already, it is not.
    """
    deadline = time.thread_time() + _SECONDS

    def look(frame: Any, event: str, argument: Any) -> Any:
        if time.thread_time() > deadline:
            raise _TooLongError(f"more than {_SECONDS:.0f} seconds for one conversation")
        return look

    watched = sys.gettrace() is None
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with suppress(OSError, ValueError):  # no such file, or no such limit here
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            if limits[0] == resource.RLIM_INFINITY or limits[0] > held + _BYTES:
                resource.setrlimit(resource.RLIMIT_AS, (held + _BYTES, limits[1]))
        if watched:
            sys.settrace(lambda frame, *_: look if _is_jinja(frame.f_code.co_filename) else None)
        yield
    finally:
        if watched:
            sys.settrace(None)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, limits)


def _is_jinja(file: str) -> bool:
    """Whether code is a template's, or of what runs it."""
    return file == "<template>" or "jinja2" in file
