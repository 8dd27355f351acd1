"""Training and evaluation data: prompts with completions, tokens with label masks."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError

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
    """A prompt and the completion it should have."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Encoded:
    """An example as tokens.

    Attributes:
        input_ids: Prompt, completion and, where the tokenizer has one, EOS.
        prompt_length: How many of them are the prompt, BOS included.
    """

    input_ids: list[int]
    prompt_length: int


def read_examples(path: str | Path) -> list[Example]:
    """Reads a JSONL file of `{"prompt": ..., "completion": ...}`; blank lines are passed over.

    Args:
        path: The file, UTF-8. Fields other than the two are ignored.

    Returns:
        The examples in the file's order, at least one.

    Raises:
        DataError: The file cannot be read, is empty, or a line is not such an object.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}", "Save it as UTF-8.") from error
    examples = list(_parse(path, text))
    if not examples:
        raise DataError(f"{path}: holds no examples", "Write one JSON object per line.")
    return examples


def _parse(path: Path, text: str) -> Iterator[Example]:
    # Only \n ends a line: splitlines() would also break at U+2028, which JSON allows in strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: is not JSON: {error.msg} at column {error.colno}",
                "Write one JSON object per line.",
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: is a JSON {type(row).__name__}, not an object",
                'Write {"prompt": "...", "completion": "..."}.',
            )
        for field in ("prompt", "completion"):
            if not isinstance(row.get(field), str) or not row[field]:
                raise DataError(
                    f'{where}: "{field}" is missing, empty or not a string',
                    'Write {"prompt": "...", "completion": "..."} with text in both.',
                )
        yield Example(row["prompt"], row["completion"])


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
    """Turns an example into tokens.

    The prompt gets the special tokens that the tokenizer itself puts before a text (BOS or none),
    so that it is what `generate` would be given; prompt and completion are tokenised apart, so
    that no token spans both.

    Args:
        tokenizer: Of the model that will read the tokens.
        example: Prompt and completion; a space between them belongs to the completion.

    Returns:
        The tokens.

    Raises:
        DataError: The prompt or the completion has no token.
    """
    prompt: list[int] = tokenizer(example.prompt)["input_ids"]
    if prompt and prompt[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        prompt = prompt[:-1]
    completion: list[int] = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    if not prompt or not completion:
        raise DataError(
            f"no tokens in the prompt or completion of {example!r}", "Write text in both."
        )
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Encoded(prompt + completion + end, len(prompt))


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
