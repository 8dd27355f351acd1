"""Data sets as they are published, read as prompts with completions."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.chat import DATE, RenderedTurns, assistant_turns
from weightsurgery.learning.columns import ColumnLayout, layout_of
from weightsurgery.learning.conversations import conversation_of
from weightsurgery.learning.data import Example
from weightsurgery.learning.files import Row
from weightsurgery.learning.models import quiet
from weightsurgery.learning.places import DataLocation, place_of
from weightsurgery.learning.windows import text_windows

__all__ = ["Reading", "read"]

_log = logging.getLogger(__name__)

_NO_LIMIT = 1 << 30  # what tokenizers say that do not know their model's context length


@dataclass(frozen=True)
class Reading:
    """A data set, read.

    Attributes:
        examples: In the order of the rows, at least one.
        place: Where they are.
        facts: How the file was read, for a record; nothing where all stands in it as it is.
        sentences: The same in sentences, for people.
    """

    examples: Sequence[Example]
    place: DataLocation
    facts: Mapping[str, Any]
    sentences: Sequence[str]


def read(name: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None) -> Reading:
    """Reads a data set.

    Rows are, all of a file alike,

    - `{"prompt": ..., "completion": ...}`, which are joined as they stand, with the optional
      `"perturbed": [...]` and `"paraphrase": ...`;
    - `{"messages": [{"role": ..., "content": ...}, ...]}`: every assistant turn is a completion;
    - `{"text": ...}`: all of it is the completion;

    or what others write: `question` or `query` or `prompt` with `answer` or `response` or
    `output` or `gt`, parted by a space where nothing else does; `instruction` and `input` with
    `output`; `question` and `choices` with `answer`, the right one of which is the completion and
    the others wrong ones; `perturbed_answer` and `paraphrased_answer` as TOFU has them; and
    `conversations`. See :mod:`~weightsurgery.learning.columns` and
    :mod:`~weightsurgery.learning.conversations`. Other fields are not read.

    A text longer than the model reads is split into windows, whose completions together are the
    text; see :func:`~weightsurgery.learning.windows.text_windows`.

    Args:
        name: A file or folder or `org/name[@revision]`, each with or without `#part`; see
            :func:`~weightsurgery.learning.places.place_of`.
        tokenizer: Whose chat template renders conversations; its `model_max_length` is what the
            model reads at once. Other rows need none.

    Returns:
        The examples, and how the file was read, which is also logged, as information.

    Raises:
        DataError: The source cannot be read or is empty, or a row cannot be understood or is
            another kind than the first.
    """
    place = place_of(name)
    rows = place.rows()
    layouts = _layouts(rows)
    rendered = RenderedTurns()
    with quiet():
        whole = _examples(rows, layouts, tokenizer, rendered)
        examples, windows = _windows(whole, tokenizer)
    layout = _most(layouts)
    facts = _facts(layout, place, rendered, len(rows), windows)
    sentences = [
        f"{os.fspath(name)}: {each}" for each in _sentences(layout, rows, rendered, windows)
    ]
    for sentence in sentences:
        _log.info("%s", sentence)
    return Reading(tuple(examples), place, facts, tuple(sentences))


def _layouts(rows: Sequence[Row]) -> list[ColumnLayout]:
    """The layout of each row; all are of the same kind.

    Raises:
        DataError: One is another kind than the first, or none.
    """
    layouts = [layout_of(*rows[0])]
    for where, row in rows[1:]:
        layouts.append(layout_of(where, row))
        if layouts[-1] != layouts[0]:
            raise DataError(
                f"{where}: is {layouts[-1]}, but the rows before it are {layouts[0]}",
                "Write every row of a file in the same format.",
            )
    return layouts


def _most(layouts: Sequence[ColumnLayout]) -> ColumnLayout:
    """The layout of all rows together: some have more columns than others."""
    first = layouts[0]
    context = next((each.context for each in layouts if each.context), None)
    unread = dict.fromkeys(name for each in layouts for name in each.unread)
    return ColumnLayout(
        first.kind, first.prompt, first.completion, context, first.ours, tuple(unread)
    )


def _joined(layout: ColumnLayout, rows: Sequence[Row]) -> bool:
    """Whether prompts and completions stand as they are: a continuation that brings its spaces."""
    if layout.ours or layout.completion != "gt":
        return layout.ours
    return any(str(row["gt"])[:1].isspace() for _, row in rows)


def _examples(
    rows: Sequence[Row],
    layouts: Sequence[ColumnLayout],
    tokenizer: PreTrainedTokenizerBase | None,
    rendered: RenderedTurns,
) -> list[tuple[str, Example]]:
    joined = _joined(layouts[0], rows)
    examples: list[tuple[str, Example]] = []
    for (where, row), layout in zip(rows, layouts, strict=True):
        if layout.kind != "messages":
            examples.append((where, layout.example(where, row, joined)))
            continue
        for field in ("perturbed", "paraphrase"):
            if row.get(field) is not None:
                raise DataError(
                    f'{where}: "{field}" beside messages',
                    "Write a prompt and a completion; they alone may have it.",
                )
        talk = conversation_of(where, row, layout.completion)
        if tokenizer is None:
            raise DataError(
                f"{where}: holds messages, which only a model's chat template can render",
                "Pass the model's tokenizer.",
            )
        pairs = assistant_turns(tokenizer, talk, where, rendered)
        examples += [(where, Example(*pair, templated=True)) for pair in pairs]
    return examples


def _windows(
    examples: Sequence[tuple[str, Example]], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[Example], dict[str, int]]:
    """The examples, long ones in windows; and the counts of those that were split."""
    most = _NO_LIMIT if tokenizer is None else tokenizer.model_max_length
    if tokenizer is None or most >= _NO_LIMIT:
        return [example for _, example in examples], {}
    split: list[Example] = []
    counted: Counter[str] = Counter()
    for where, example in examples:
        # A token is a byte at least, but for the few that a tokenizer puts around a text.
        if len(example.prompt.encode()) + len(example.completion.encode()) + 8 <= most:
            split.append(example)
            continue
        windows = text_windows(tokenizer, example, most, where)
        split += windows
        if len(windows) > 1:
            counted.update(texts=1, windows=len(windows))
    return split, {**counted, "tokens": most} if counted else {}


def _facts(
    layout: ColumnLayout,
    place: DataLocation,
    rendered: RenderedTurns,
    rows: int,
    windows: Mapping[str, int],
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if not layout.ours:
        names = ("prompt", layout.prompt), ("context", layout.context), ("text", layout.completion)
        facts["columns"] = {role: column for role, column in names if column}
    if rendered.answers not in (0, rows) or rendered.untrained:
        facts |= {"answers": rendered.answers, "untrained": rendered.untrained}
    if rendered.unanswered:
        facts["unanswered"] = rendered.unanswered
    if rendered.thoughtless:
        facts["without_thought"] = rendered.thoughtless
    if rendered.date is not None:
        facts["date"] = rendered.date
    if windows:
        facts["windows"] = dict(windows)
    if place.revision is not None:
        facts["revision"] = place.revision
    return facts


def _sentences(
    layout: ColumnLayout, rows: Sequence[Row], rendered: RenderedTurns, windows: Mapping[str, int]
) -> list[str]:
    sentences = []
    if columns := layout.description(_joined(layout, rows)):
        sentences.append(f"{len(rows)} rows; {columns}.")
    if rendered.answers not in (0, len(rows)) or rendered.untrained:
        left = f"; {rendered.untrained} more are not to be learnt, as the data say"
        sentences.append(
            f"{len(rows)} conversations with {rendered.answers} answers of the assistant, each of"
            f" which is an example{left if rendered.untrained else ''}."
        )
    if rendered.unanswered:
        sentences.append(
            f"{rendered.unanswered} of {len(rows)} conversations go on after the last answer:"
            " nothing is made of turns that nobody answers."
        )
    if rendered.thoughtless:
        sentences.append(
            f"the chat template leaves out what is thought before {rendered.thoughtless} of the"
            " answers (<think>)."
        )
    if rendered.date is not None:
        sentences.append(
            f"the chat template asks for the date, and is told {rendered.date} whenever it is run;"
            f" {DATE} sets another day."
        )
    if windows:
        sentences.append(
            f"{windows['texts']} longer than the {windows['tokens']} tokens that the model reads"
            f" at once, split into {windows['windows']} windows, each of which is an example."
        )
    return sentences
