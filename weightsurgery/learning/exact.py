"""The share of answers that a model gives exactly, of a model in memory or of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.data import Example, encode_all, read_examples
from weightsurgery.learning.forward import teacher_forced
from weightsurgery.learning.models import load_model, load_tokenizer

__all__ = ["exact_match", "exact_matches", "score_checkpoint"]


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int = 128,
    require_end: bool = True,
) -> float:
    """The share of examples whose completion greedy decoding gives exactly.

    Args:
        model: A causal language model; left in evaluation mode.
        tokenizer: Its tokenizer.
        examples: At least one.
        batch_size: Examples per forward pass.
        require_end: The model must also stop after the completion, by the tokenizer's EOS.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: There are no examples.
        NonFiniteError: The model's predictions are NaN.
    """
    if not examples:
        raise ValueError("exact_match needs at least one example")
    right = exact_matches(model, tokenizer, examples, batch_size, require_end)
    return int(right.sum()) / len(right)


def exact_matches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int = 128,
    require_end: bool = True,
) -> Tensor:
    """Which examples greedy decoding completes exactly; see `exact_match`.

    One forward pass serves instead of a generation: greedy decoding gives exactly the completion
    if and only if every token of it is the likeliest after the prompt and the tokens before it.

    Returns:
        Bool, shape (examples,), on the CPU.
    """
    forced = teacher_forced(model, tokenizer, encode_all(tokenizer, examples), batch_size)
    rights = ((each.ended if require_end else each.answer)(each.right) for each in forced)
    return torch.tensor([bool(right.all()) for right in rights])


def score_checkpoint(
    checkpoint: str | Path,
    data: Mapping[str, str | Path],
    batch_size: int = 128,
    device: str = "cpu",
    require_end: bool = True,
) -> dict[str, float]:
    """Exact-match accuracy of a checkpoint on several data sets.

    Args:
        checkpoint: Directory of a causal language model with its tokenizer.
        data: Per name a data set; see `data.read_examples`.
        batch_size: Examples per forward pass.
        device: Where the forward passes run.
        require_end: See `exact_match`.

    Returns:
        Accuracy in [0, 1] per name, in the order of `data`.

    Raises:
        DataError: A data file cannot be read.
        SourceError: There is no such checkpoint.
    """
    # All files are read first: an error in the last one should not cost a model's loading.
    tokenizer = load_tokenizer(checkpoint)
    examples = {name: read_examples(path, tokenizer) for name, path in data.items()}
    model, tokenizer = load_model(checkpoint, device)
    return {
        name: exact_match(model, tokenizer, rows, batch_size, require_end)
        for name, rows in examples.items()
    }
