"""Training and evaluation data: prompts with completions, tokens with label masks."""

from collections.abc import Sequence
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
    """A prompt and the completion it should have.

    Attributes:
        prompt: Empty for a plain text, all of which is the completion.
        completion: Includes a space that parts it from the prompt.
        templated: Both were rendered by a chat template, special tokens included.
        perturbed: Wrong completions, for the truth ratio.
        paraphrase: The right completion in other words, for the truth ratio.
        goes_on: The completion is a part of a longer text: it does not end with it.
    """

    prompt: str
    completion: str
    templated: bool = False
    perturbed: tuple[str, ...] = ()
    paraphrase: str | None = None
    goes_on: bool = False


@dataclass(frozen=True)
class Encoded:
    """An example as tokens.

    Attributes:
        input_ids: Prompt, completion and, where the tokenizer has one and the text is over, EOS.
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
    """The examples of a data set; see :func:`weightsurgery.learning.reading.read`."""
    from weightsurgery.learning.reading import read  # which makes examples

    return list(read(path, tokenizer).examples)


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
    over = tokenizer.eos_token_id is not None and not example.goes_on
    end = [tokenizer.eos_token_id] if over else []
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
