"""Conversations as prompts and completions, rendered by the model's own chat template."""

import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.calls import forms, holds, lost_call
from weightsurgery.learning.conversations import Conversation

__all__ = ["DATE", "RenderedTurns", "assistant_turns"]

DATE = "SOURCE_DATE_EPOCH"
"""The environment variable for the day that is given to templates, in seconds since 1970."""

_DAY = 1721952000  # 26 July 2024, which Llama's templates write where they know no date

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL)


@dataclass
class RenderedTurns:
    """Counts of rendered conversations that users are to see.

    Attributes:
        answers: How many assistant turns became completions.
        untrained: How many more there are, of which the data say that they are not to be learnt.
        thoughtless: Of how many answers the template leaves out what was thought before.
        unanswered: How many conversations go on after the last answer, which nothing is made of.
        date: The day given to templates, where one wanted it.
    """

    answers: int = 0
    untrained: int = 0
    thoughtless: int = 0
    unanswered: int = 0
    date: str | None = None


def assistant_turns(
    tokenizer: PreTrainedTokenizerBase,
    talk: Conversation,
    where: str,
    counts: RenderedTurns | None = None,
) -> list[tuple[str, str]]:
    """Each assistant turn of a conversation, as a completion of what precedes it.

    A template that calls for the date always gets the same one, so that an edit can be made again
    to the byte. See :data:`DATE`.

    Args:
        tokenizer: With a chat template.
        talk: The conversation.
        where: What to call it in messages.
        counts: Is counted up.

    Returns:
        Per assistant turn that is to be learnt the rendered text before it and its own, the marks
        of its beginning in the former and of its end in the latter; the two joined are the
        template's own rendering of the conversation up to there.

    Raises:
        DataError: There is no template; or it fails, renders a turn differently depending on what
            follows, or leaves out a message, a call or a tool.
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
    counts = RenderedTurns() if counts is None else counts
    template = _Template(tokenizer, talk.tools, where)
    spoken = [n for n, message in enumerate(talk.messages) if message["role"] == "assistant"]
    after = talk.messages[spoken[-1] + 1 :]
    failed: DataError | None = None
    for messages in forms(talk.messages):
        try:
            rendered = [template.turn(messages[: n + 1]) for n in talk.answers]
            template.check(messages[: talk.answers[-1] + 1])
        except DataError as error:
            failed = failed or error
            continue
        counts.answers += len(rendered)
        counts.untrained += talk.untrained
        counts.unanswered += any(each["role"] != "assistant" for each in after)
        counts.thoughtless += sum(each.thoughtless for each in rendered)
        counts.date = template.date or counts.date
        return [(each.prompt, each.completion) for each in rendered]
    assert failed is not None  # there is a form, and it failed
    raise failed


@lru_cache(16)
def _raises_to_powers(template: str) -> bool:
    """Whether a template holds ``**``: one such step can take for ever, and none needs it."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        return any(value == "**" for _, kind, value in Environment().lex(template)
                   if kind == "operator")  # fmt: skip
    except TemplateSyntaxError:
        return False  # whoever compiles it says so


@dataclass(frozen=True)
class _Turn:
    prompt: str
    completion: str
    thoughtless: bool


class _Template:
    """A tokenizer's chat template at work on one conversation."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None, where: str
    ) -> None:
        self._tokenizer, self._tools, self._where = tokenizer, tools, where
        self.date: str | None = None
        self._dated: dict[str, Any] = {}
        if "strftime_now" in str(tokenizer.chat_template):
            day = datetime.fromtimestamp(_seconds(), UTC)
            self.date = day.date().isoformat()
            written = tokenizer.get_chat_template(None, tools)
            self._dated = {"chat_template": _TODAY + written, "ws_day": _directives(day)}

    def turn(self, messages: list[dict[str, Any]]) -> _Turn:
        """The last message as a completion.

        Raises:
            DataError: It is not in what is rendered, or what is before it changes with it.
        """
        whole = self._rendered(messages)
        bare = self._rendered(messages[:-1], mark=False)
        for prompt in self._prompts(messages, whole, bare):
            completion = whole[len(prompt) :]
            content = messages[-1]["content"] or ""
            after = _THOUGHT.sub("", content)
            thoughtless = not holds(whole[len(bare) :], content)
            if thoughtless and (after == content or not after.strip()):
                continue
            thought = _thought(messages[-1])
            if holds(completion, after) and not lost_call(completion, messages[-1]):
                thoughtless = thoughtless or not holds(whole[len(bare) :], thought)
                return _Turn(prompt, completion, thoughtless)
        if whole.startswith(bare) and messages[-1].get("tool_calls"):
            what = lost_call(whole[len(bare) :], messages[-1]) or "the text beside the tool calls"
            raise DataError(
                f"{self._where}: the chat template leaves out {what} of message {len(messages)}",
                "Name a model whose template writes tool calls, or take them out of the data.",
            )
        raise DataError(
            f"{self._where}: the chat template renders the turns before an answer differently"
            " with it",
            "Write prompts and completions as the model should see them.",
        )

    def _prompts(self, messages: list[dict[str, Any]], whole: str, bare: str) -> Iterator[str]:
        """Candidates for the text before the answer, the likeliest first."""
        # With the mark that the assistant begins, as in generation; some templates have none.
        marked = self._rendered(messages[:-1], mark=True)
        if whole.startswith(marked):
            yield marked
        if whole.startswith(bare):
            # A mark may go on with the beginning of a thought, which the answer lacks.
            pairs = zip(whole, marked, strict=False)
            shared = next((n for n, (one, other) in enumerate(pairs) if one != other), 0)
            if shared > len(bare):
                yield whole[:shared]
            yield bare

    def check(self, messages: list[dict[str, Any]]) -> None:
        """Refuse a rendering from which a message is missing.

        Raises:
            DataError: Something is.
        """
        whole = self._rendered(messages)
        for number, message in enumerate(messages, start=1):
            content, role = message["content"] or "", message["role"]
            if (role != "assistant" and not holds(whole, content)) or lost_call(whole, message):
                raise DataError(
                    f"{self._where}: the chat template leaves out message {number}, of the role"
                    f" {role!r}",
                    "Take it out of the data, or name a model whose template writes it.",
                )
        for tool in self._tools or ():
            if not holds(whole, str(tool.get("function", tool).get("name", ""))):
                raise DataError(
                    f'{self._where}: the chat template leaves out the row\'s "tools"',
                    "Take the field out of the data, or name a model whose template writes tools.",
                )

    def _rendered(self, messages: list[dict[str, Any]], mark: bool = False) -> str:
        try:
            return self._render(messages, mark)
        except Exception as error:  # a template is a program: it can fail in any way
            lines = str(error).splitlines() or [type(error).__name__]
            raise self._refused(messages, lines[0]) from error

    def _render(self, messages: list[dict[str, Any]], mark: bool) -> str:
        with _bounded():
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=self._tools,
                    tokenize=False,
                    add_generation_prompt=mark,
                    **self._dated,
                )
            )

    def _refused(self, messages: list[dict[str, Any]], words: str) -> DataError:
        """The error for a template that failed."""
        without = [message for message in messages if message["role"] != "system"]
        if without and len(without) < len(messages):
            try:
                self._render(without, False)
            except Exception:  # then it is not the system turn alone
                pass
            else:
                return DataError(
                    f"{self._where}: the chat template takes no system turn: {words}",
                    "Write its words before the first question of the user, or take it out.",
                )
        return DataError(
            f"{self._where}: the chat template fails: {words}",
            "Check the roles and their order; an answer needs a question before it.",
        )


def _thought(message: Mapping[str, Any]) -> str:
    for name in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(thought := message.get(name), str):
            return thought
    return ""


# transformers lets a template read the clock; this macro stands before it instead.
_TODAY = (
    "{%- macro strftime_now(form) -%}{%- for part in form.split('%') -%}"
    "{%- if loop.first -%}{{ part }}{%- elif part[:1] == '-' -%}"
    "{{ ws_day[part[:2]] }}{{ part[2:] }}"
    "{%- else -%}{{ ws_day[part[:1]] }}{{ part[1:] }}"
    "{%- endif -%}{%- endfor -%}{%- endmacro -%}{{ '' }}"
)


def _directives(day: datetime) -> dict[str, str]:
    """Results of strftime for each of its letters, and for those that a minus may precede."""
    directives = {each: day.strftime(f"%{each}") for each in "aAwdbBmyYHIpMSfzZjUWcxXGuV"}
    return directives | {f"-{each}": directives[each].lstrip("0") or "0" for each in "dmyHIMSjUW"}


def _seconds() -> int:
    given = os.environ.get(DATE, "")
    if given and not given.isdecimal():
        raise DataError(f"{DATE}={given[:40]!r}", "Give it whole seconds since 1970, or unset it.")
    return int(given) if given else _DAY


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
    """Whether code belongs to a template, or to jinja2."""
    return file == "<template>" or "jinja2" in file
