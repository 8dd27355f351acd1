"""Training and evaluation data: prompts with completions, tokens with label masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.chat import turns
from weightsurgery.learning.files import read_rows

__all__ = [
    "IGNORED",
    "Collator",
    "Encoded",
    "Example",
    "encode",
    "encode_all",
    "padding_token",
    "read_examples",
]

IGNORED = -100
"""The label of a token without loss."""


@dataclass(frozen=True)
class Example:
    """A prompt and the completion it should have.

    Attributes:
        prompt: Empty for a plain text, all of which is the completion.
        completion: Includes a space that parts it from the prompt.
        templated: Both were rendered by a chat template, special tokens included.
        perturbed: Wrong completions, for the truth ratio.
        paraphrase: The right completion in other words, for the truth ratio.
    """

    prompt: str
    completion: str
    templated: bool = False
    perturbed: tuple[str, ...] = ()
    paraphrase: str | None = None


@dataclass(frozen=True)
class Encoded:
    """An example as tokens.

    Attributes:
        input_ids: Prompt, completion and, where the tokenizer has one, EOS.
        prompt_length: How many of them are the prompt, BOS included.
        end_length: How many at the end only say that the completion is over: EOS, or a chat
            template's end of turn.
    """

    input_ids: list[int]
    prompt_length: int
    end_length: int = 0


def read_examples(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Example]:
    """Reads a data set in one of three formats, the same in every row.

    - `{"prompt": ..., "completion": ...}`, with the optional `"perturbed": [...]` and
      `"paraphrase": ...`;
    - `{"messages": [{"role": ..., "content": ...}, ...]}`: every assistant turn is a completion;
    - `{"text": ...}`: all of it is the completion.

    Other fields are ignored.

    Args:
        path: JSONL, JSON, CSV, Parquet, or a directory of `datasets`; see `files.read_rows`.
        tokenizer: Whose chat template renders messages; the other formats need none.

    Returns:
        The examples in the file's order, at least one.

    Raises:
        DataError: The source cannot be read or is empty, or a row has no such format or another
            one than the first.
    """
    rows = read_rows(path)
    format_ = _format(*rows[0])
    examples: list[Example] = []
    for where, row in rows:
        if format_ != (other := _format(where, row)):
            raise DataError(
                f"{where}: is {other}, but the rows before it are {format_}",
                "Write every row of a file in the same format.",
            )
        if format_ == _PAIR:
            examples.append(_pair(where, row))
        elif format_ == _TEXT:
            _text(where, row, "text", '{"text": "..."}')
            examples.append(Example("", row["text"]))
        else:
            examples += _conversation(where, row, tokenizer)
    return examples


_PAIR, _MESSAGES, _TEXT = "a prompt with a completion", "a list of messages", "a text"


def _format(where: str, row: Mapping[str, Any]) -> str:
    # A column of Parquet is null where a row lacks it.
    present = {field for field, value in row.items() if value is not None}
    if present & {"prompt", "completion"}:
        return _PAIR
    for field, format_ in (("messages", _MESSAGES), ("text", _TEXT)):
        if field in present:
            return format_
    raise DataError(
        f"{where}: has neither a prompt with a completion, nor messages, nor a text",
        'Write {"prompt": "...", "completion": "..."}, {"messages": [...]} or {"text": "..."}.',
    )


def _text(where: str, row: Mapping[str, Any], field: str, remedy: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise DataError(f'{where}: "{field}" is missing, empty or not a string', f"Write {remedy}.")
    return value


def _pair(where: str, row: Mapping[str, Any]) -> Example:
    remedy = '{"prompt": "...", "completion": "..."} with text in both'
    prompt = _text(where, row, "prompt", remedy)
    completion = _text(where, row, "completion", remedy)
    paraphrase = None
    if row.get("paraphrase") is not None:
        paraphrase = _text(where, row, "paraphrase", '"paraphrase": "...", or leave it out')
    perturbed = row.get("perturbed")
    if perturbed is None:
        return Example(prompt, completion, paraphrase=paraphrase)
    if not isinstance(perturbed, list) or not all(
        isinstance(each, str) and each for each in perturbed
    ):
        raise DataError(
            f'{where}: "perturbed" is no list of wrong completions', 'Write "perturbed": ["..."].'
        )
    return Example(prompt, completion, perturbed=tuple(perturbed), paraphrase=paraphrase)


def _conversation(
    where: str, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> list[Example]:
    if not isinstance(row["messages"], list):
        raise DataError(
            f'{where}: "messages" is not a list',
            'Write "messages": [{"role": "user", "content": "..."}, ...].',
        )
    for field in ("perturbed", "paraphrase"):
        if row.get(field) is not None:
            raise DataError(
                f'{where}: "{field}" beside messages',
                "Write a prompt and a completion; they alone may have it.",
            )
    if tokenizer is None:
        raise DataError(
            f"{where}: holds messages, which only a model's chat template can render",
            "Pass the model's tokenizer.",
        )
    pairs = turns(tokenizer, row["messages"], where)
    return [Example(prompt, completion, templated=True) for prompt, completion in pairs]


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
    """Turns an example into tokens.

    The prompt gets the special tokens that the tokenizer itself puts before a text (BOS or none),
    so that it is what `generate` would be given; prompt and completion are tokenised apart, so
    that no token spans both. A text without prompt follows BOS; where the tokenizer has none, its
    first token is given. What a chat template rendered gets no special token and is tokenised as
    one, unless a token would then span prompt and completion.

    Args:
        tokenizer: Of the model that will read the tokens.
        example: Prompt and completion; a space between them belongs to the completion.

    Returns:
        The tokens.

    Raises:
        DataError: The prompt or the completion has no token.
    """
    if example.templated:
        return _encode_templated(tokenizer, example)
    prompt: list[int] = tokenizer(example.prompt)["input_ids"]
    if prompt and prompt[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        prompt = prompt[:-1]
    completion: list[int] = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    if not example.prompt and not prompt:
        if tokenizer.bos_token_id is not None:
            prompt = [tokenizer.bos_token_id]
        else:
            prompt, completion = completion[:1], completion[1:]
    if not prompt or not completion:
        raise DataError(
            f"no tokens in the prompt or completion of {_brief(example)}",
            "Write text in both; a text alone needs two tokens where the model has no BOS.",
        )
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Encoded(prompt + completion + end, len(prompt), len(end))


def _encode_templated(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt, whole = tokens(example.prompt), tokens(example.prompt + example.completion)
    if whole[: len(prompt)] != prompt:
        whole = prompt + tokens(example.completion)
    end = 0
    special = set(tokenizer.all_special_ids)
    while end < len(whole) - len(prompt):
        last = whole[len(whole) - 1 - end]
        if last not in special and str(tokenizer.decode([last])).strip():
            break
        end += 1
    if not prompt or end == len(whole) - len(prompt):
        raise DataError(
            f"no tokens in the prompt or completion of {_brief(example)}", "Write text in both."
        )
    return Encoded(whole, len(prompt), end)


def _brief(example: Example) -> str:
    shown = f"{example.prompt!r} with {example.completion!r}"
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def encode_all(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Encoded]:
    """`encode` for every example, in order."""
    return [encode(tokenizer, example) for example in examples]


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with; masked everywhere, so any id serves where the tokenizer names none."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


@dataclass(frozen=True)
class Collator:
    """Makes a batch of encoded examples: padded tokens, attention mask, labels.

    Loss falls on the completion and its EOS alone.

    Attributes:
        pad_token_id: What fills the short rows.
        left: Pad on the left, as generation needs; training and scoring pad on the right.
    """

    pad_token_id: int
    left: bool = False

    def __call__(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        """Collates.

        Args:
            batch: At least one encoded example.

        Returns:
            `input_ids`, `attention_mask` and `labels`, int64, each of shape
            (examples, longest example); labels are `IGNORED` on prompt and padding.
        """
        longest = max(len(row.input_ids) for row in batch)
        shape = (len(batch), longest)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED)
        for index, row in enumerate(batch):
            start = longest - len(row.input_ids) if self.left else 0
            stop = start + len(row.input_ids)
            tokens = torch.tensor(row.input_ids)
            input_ids[index, start:stop] = tokens
            attention_mask[index, start:stop] = 1
            labels[index, start + row.prompt_length : stop] = tokens[row.prompt_length :]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
