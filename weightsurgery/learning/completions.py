"""Completions of prompts by models, side by side, to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.forward import greedy
from weightsurgery.learning.models import context_length, load_model, quiet
from weightsurgery.learning.wordings import tokens
from weightsurgery.learning.written import chat_frame
from weightsurgery.progress import Progress

__all__ = ["Completion", "complete"]


@dataclass(frozen=True)
class Completion:
    """A greedy completion.

    Attributes:
        text: Without what follows its end.
        ended: Whether it came to an end by itself.
    """

    text: str
    ended: bool


def complete(
    checkpoints: Sequence[str | Path],
    prompts: Sequence[Example],
    *,
    chat: bool = False,
    length: int = 48,
    batch_size: int = 32,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[list[Completion]]:
    """Continues prompts greedily by models, one after the other in memory.

    Args:
        checkpoints: Directories, each with a causal language model and its tokenizer.
        prompts: Their completions are not read.
        chat: Put each prompt as a user's turn of a conversation, in the model's chat template; what
            is rendered by a template already stays as it is.
        length: Tokens to go on for at most.
        batch_size: Prompts per forward pass.
        device: Where the models run.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        Of each prompt a completion by each checkpoint.

    Raises:
        SourceError: A checkpoint is no causal language model that transformers can load.
        DataError: A prompt without tokens, or longer than the model reads; or a chat is asked for
            and the tokenizer has no template, or one that changes what users say.
    """
    completions: list[list[Completion]] = [[] for _ in prompts]
    for checkpoint in checkpoints:
        model, tokenizer = load_model(checkpoint, device)
        with quiet():  # a tokenizer warns of what is refused here
            rows = _rows(model, tokenizer, prompts, chat, str(checkpoint))
        answers = greedy(
            model, tokenizer, rows, [length] * len(rows), batch_size, "prompts", progress
        )
        most = context_length(model)
        for outputs, row, answer in zip(completions, rows, answers, strict=True):
            room = length if most is None else min(length, most - len(row) + 1)
            outputs.append(Completion(str(tokenizer.decode(answer)), len(answer) < room))
        del model
    return completions


def _rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Example],
    chat: bool,
    name: str,
) -> list[list[int]]:
    frame = chat_frame(tokenizer) if chat else None
    if chat and frame is None:
        raise DataError(
            f"{name}: its tokenizer has no chat template that takes a lone question",
            "Ask without --chat.",
        )
    rows = []
    for example in prompts:
        text, templated = example.prompt, example.templated
        if frame is not None and not templated:
            text, templated = f"{frame[0]}{text}{frame[1]}", True
        row = tokens(tokenizer, text, templated)
        shown = f"{example.prompt[:40]!r}{'…' if len(example.prompt) > 40 else ''}"
        if not row:
            raise DataError(f"the prompt {shown} has no tokens", "Write text in it.")
        most = context_length(model)
        if most is not None and len(row) > most:
            raise DataError(
                f"{name} reads {most} tokens at once, and the prompt {shown} has {len(row)}",
                "Shorten it.",
            )
        rows.append(row)
    return rows
