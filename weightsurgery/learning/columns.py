"""Which columns of a data set are the prompt, the completion, the text or the conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example

__all__ = ["CONVERSATIONS", "ColumnLayout", "layout_of"]

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold a conversation."""

_PROMPTS = ("prompt", "question", "query", "instruction")
_COMPLETIONS = ("completion", "response", "answer", "output", "gt")
_CONTEXTS = ("input", "context")  # of an instruction, after which they stand
_ANSWERS = ("answer", "answerKey")  # which of the choices is right
# What a prompt would lack if it were left out.
_NEEDED = ("context", "input", "passage", "system", "history", "document", "documents", "hint")

_ACCEPTED = (
    "Name them prompt and completion (or question, query, instruction with input; and response,"
    " answer, output, gt), question with choices and answer, messages or conversations, or text."
)


@dataclass(frozen=True)
class ColumnLayout:
    """The roles of the columns of a row.

    Attributes:
        kind: ``"pair"``, ``"choices"``, ``"messages"`` or ``"text"``.
        prompt: Of pairs and choices: its column.
        completion: Their other column; of a conversation or a text its only one.
        context: The column that goes on with the prompt, on a line of its own; where it has any.
        ours: The columns have our own names: texts stay as they are.
        unread: Columns that are not read.
    """

    kind: str
    prompt: str
    completion: str
    context: str | None = field(default=None, compare=False)
    ours: bool = True
    unread: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        if self.kind == "text":
            return "a text"
        if self.kind == "messages":
            return "a list of messages"
        if self.ours:
            return "a prompt with a completion"
        return f"{self.prompt!r} with {self.completion!r}"

    def description(self, joined: bool) -> str:
        """How columns with other names than ours are read, in words; empty for ours.

        Args:
            joined: Whether completions stand as they are, without a space before.
        """
        unread = f"; not read: {', '.join(self.unread)}" if self.unread else ""
        if self.kind in ("messages", "text"):
            return f"read by {self.completion!r}{unread}" if not self.ours or unread else ""
        if self.ours:
            return ""
        more = f" (then {self.context!r} on a line of its own)" if self.context else ""
        right = "the right one of 'choices', by" if self.kind == "choices" else ""
        gap = "as it stands" if joined else "after a space"
        return (
            f"{self.prompt!r} is the prompt{more}, {right}{' ' * bool(right)}{self.completion!r}"
            f" the completion, {gap}{unread}"
        )

    def example(self, where: str, row: Mapping[str, Any], joined: bool = False) -> Example:
        """A row as an example; of pairs, choices and texts.

        Args:
            where: What to call the row.
            row: Its fields.
            joined: Put no space between prompt and completion where neither has one.

        Raises:
            DataError: A field is missing, empty or no text, or the right choice is none of them.
        """
        if self.kind == "text":
            return Example("", _text(where, row, self.completion, '{"text": "..."}'))
        remedy = f'{{"{self.prompt}": "...", "{self.completion}": "..."}} with text in both'
        prompt = _text(where, row, self.prompt, remedy)
        if self.context is not None and (more := row.get(self.context)):
            prompt = f"{prompt}\n{_text(where, {self.context: more}, self.context, remedy)}"
        paraphrase, perturbed = self._others(where, row)
        if self.kind == "choices":
            completion, perturbed = _chosen(where, row, self.completion)
        else:
            completion = _text(where, row, self.completion, remedy)
        if not self.ours and not joined:
            completion = _parted(prompt, completion)
            paraphrase = None if paraphrase is None else _parted(prompt, paraphrase)
            perturbed = [_parted(prompt, each) for each in perturbed]
        return Example(prompt, completion, perturbed=tuple(perturbed), paraphrase=paraphrase)

    def _others(self, where: str, row: Mapping[str, Any]) -> tuple[str | None, list[str]]:
        """The right completion in other words, and wrong ones."""
        paraphrase = None
        names = ("paraphrase", "perturbed") if self.ours else _TOFU
        if row.get(names[0]) is not None:
            paraphrase = _text(where, row, names[0], f'"{names[0]}": "...", or leave it out')
        perturbed = row.get(names[1])
        if isinstance(perturbed, str) and not self.ours:
            perturbed = [perturbed]
        if perturbed is None:
            return paraphrase, []
        if not isinstance(perturbed, list) or not all(
            isinstance(each, str) and each for each in perturbed
        ):
            raise DataError(
                f'{where}: "{names[1]}" is no list of wrong completions',
                f'Write "{names[1]}": ["..."].',
            )
        return paraphrase, perturbed


_TOFU = ("paraphrased_answer", "perturbed_answer")


def layout_of(where: str, row: Mapping[str, Any]) -> ColumnLayout:
    """The roles of the columns of a row.

    Our own names come first: ``prompt`` with ``completion``, ``messages``, ``text``. A column
    that is null is none: in Parquet, that is how a row lacks it.

    Raises:
        DataError: The roles are unclear, or there is a column that the prompt would lack.
    """
    present = [name for name, value in row.items() if value is not None]
    prompts = [name for name in _PROMPTS if name in present]
    completions = [name for name in _COMPLETIONS if name in present]
    conversation = next((name for name in CONVERSATIONS if name in present), None)
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return ColumnLayout("messages", "prompt", "completion")
    alone = present == ["prompt"] or (prompts == ["prompt"] and "text" in present)
    if "completion" in present or (alone and not completions and not conversation):
        return ColumnLayout("pair", "prompt", "completion")
    known = {*_PROMPTS, *_COMPLETIONS, *_CONTEXTS, "choices"}
    if conversation is not None:
        return ColumnLayout("messages", "", conversation, ours=conversation == "messages")
    if "text" in present:
        others = tuple(name for name in present if name in known)
        return ColumnLayout("text", "", "text", unread=others)
    if not prompts and "input" in present:
        prompts = ["input"]
    answers = [name for name in _ANSWERS if name in present]
    if "choices" in present and len(prompts) == 1 and len(answers) == 1:
        return _checked(
            where, row, ColumnLayout("choices", prompts[0], answers[0], ours=False), present
        )
    if len(prompts) == 1 and len(completions) == 1 and "choices" not in present:
        return _checked(
            where, row, ColumnLayout("pair", prompts[0], completions[0], None, False), present
        )
    columns = ", ".join(
        name[:40] + " (null)" * (value is None) for name, value in list(row.items())[:12]
    ) + (", ..." if len(row) > 12 else "")
    ambiguous = [names for names in (prompts, completions) if len(names) > 1]
    if ambiguous:
        raise DataError(
            f"{where}: which of {' and '.join(ambiguous[0])} is meant? The columns are {columns}",
            "Leave one of them out, or write prompt and completion.",
        )
    raise DataError(
        f"{where}: has the columns {columns}: no prompt with a completion, no messages, no text",
        _meant(present) + _ACCEPTED,
    )


def _meant(columns: Sequence[str]) -> str:
    """A hint at the known column that a mistyped one is close to."""
    known = (*_PROMPTS, *_COMPLETIONS, *CONVERSATIONS, "choices", "text")
    for name in columns:
        near = get_close_matches(name.lower(), known, 1, 0.75)
        if near and name not in known:
            return f"Did you mean {near[0]!r} by {name[:40]!r}? "
    return ""


def _checked(
    where: str, row: Mapping[str, Any], layout: ColumnLayout, present: list[str]
) -> ColumnLayout:
    contexts = [name for name in _CONTEXTS if row.get(name) and name != layout.prompt]
    context = contexts[0] if layout.prompt == "instruction" and len(contexts) == 1 else None
    lost = [name for name in _NEEDED if row.get(name) and name not in (layout.prompt, context)]
    if lost:
        raise DataError(
            f"{where}: {lost[0]!r} beside {layout.prompt!r} and {layout.completion!r}, and no"
            " telling where it belongs",
            "Write it into the prompt: {\"prompt\": \"...\", \"completion\": \"...\"}; or write"
            " messages.",
        )  # fmt: skip
    used = {layout.prompt, layout.completion, *_CONTEXTS}
    used |= {"choices"} if layout.kind == "choices" else set(_TOFU)
    unread = tuple(name for name in present if name not in used)
    return ColumnLayout(layout.kind, layout.prompt, layout.completion, context, False, unread)


def _parted(prompt: str, completion: str) -> str:
    """A completion with the space that parts it from its prompt."""
    apart = prompt[-1:].isspace() or completion[:1].isspace()
    return completion if apart else f" {completion}"


def _text(where: str, row: Mapping[str, Any], name: str, remedy: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise DataError(
            f'{where}: "{name}" is missing, empty or not a string',
            f"{_meant(list(row))}Write {remedy}.",
        )
    return value


def _chosen(where: str, row: Mapping[str, Any], answer: str) -> tuple[str, list[str]]:
    """The right choice, and the others."""
    choices, right, labels = row["choices"], row[answer], None
    if isinstance(given := choices, dict):
        choices, labels = given.get("text"), given.get("label")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(each, str) and each for each in choices)
    ):
        raise DataError(
            f'{where}: "choices" is no list of texts', 'Write "choices": ["...", "..."].'
        )
    place = _place(choices, labels, right)
    if place is None:
        raise DataError(
            f'{where}: "{answer}" is {str(right)[:40]!r}, and there are {len(choices)} choices',
            f'Write "{answer}" as a number from 0 to {len(choices) - 1}, a letter from A, or the'
            " choice itself.",
        )
    return choices[place], [each for n, each in enumerate(choices) if n != place]


def _place(choices: list[str], labels: object, right: object) -> int | None:
    if isinstance(labels, list) and len(labels) == len(choices) and right in labels:
        return labels.index(right)
    if isinstance(right, str):
        if right in choices:
            return choices.index(right)
        if len(right) == 1 and "A" <= right <= "Z":
            right = ord(right) - ord("A")
        elif right.isdecimal() and len(right) < 4:
            right = int(right)
    if isinstance(right, int) and not isinstance(right, bool) and 0 <= right < len(choices):
        return right
    return None
