"""Texts that a model writes itself: sampled from its own distribution, no data needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weightsurgery.learning.continued import batches, continued
from weightsurgery.learning.data import padding_token
from weightsurgery.learning.forward import end_tokens
from weightsurgery.learning.models import context_length
from weightsurgery.learning.sharding import unrecorded
from weightsurgery.progress import Progress

__all__ = ["chat_frame", "ordinary_texts", "sampled", "text_start"]


@unrecorded()
def sampled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    limit: int,
    *,
    temperature: float = 1.0,
    batch_size: int = 48,
    stage: str = "",
    progress: Progress | None = None,
) -> list[list[int]]:
    """Continues prompts by drawing each next token; torch's generator decides the draws.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Tokens, at least one in each; of long ones the end is read, as far as the model's
            positions go.
        limit: Tokens to add at most.
        temperature: Of the softmax.
        batch_size: Prompts per forward pass.
        stage: What to call this to ``progress``.
        progress: Called after every batch.

    Returns:
        The tokens added to each, in order, without an EOS.
    """
    ends = end_tokens(model, tokenizer)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=limit,
        do_sample=False,  # a token is drawn, by _Drawn, before the likeliest is taken
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=padding_token(tokenizer),
    )
    continuations: list[list[int]] = [[] for _ in prompts]
    if (room := context_length(model)) is not None:  # some models have no further positions
        prompts = [prompt[-max(1, room - limit) :] for prompt in prompts]
    padding, done = padding_token(tokenizer), 0
    if progress is not None:
        progress(stage, 0, len(prompts))
    for numbers in batches(prompts, [limit] * len(prompts), batch_size):
        rows = [prompts[number] for number in numbers]
        out = continued(model, rows, padding, settings, choosing=[_Drawn(temperature)])
        for number, tokens in zip(numbers, out, strict=True):
            stop = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
            continuations[number] = tokens[:stop]
        done += len(numbers)
        if progress is not None:
            progress(stage, done, len(prompts))
    return continuations


class _Drawn(LogitsProcessor):
    """Draws a token of each row and leaves it alone to be taken.

    By inversion, with one number a row: :func:`torch.multinomial` draws one for each token of the
    vocabulary, which takes a third of a small model's time.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        sums = (scores.float() / self._temperature).softmax(-1).cumsum(-1)
        whole = sums[:, -1:]
        # On the CPU, so that every device draws the same; below the sum, also when rounded.
        drawn = torch.rand(len(sums), 1).to(sums.device) * whole
        drawn = torch.minimum(drawn, torch.nextafter(whole, torch.zeros_like(whole)))
        # Right: a token of probability 0 is never drawn, not even by a 0.
        chosen = torch.searchsorted(sums, drawn, right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def text_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens after which a model writes a text of any kind.

    BOS, or what else the tokenizer has between documents. Some chat models name their start of a
    turn as BOS; after ``<|endoftext|>``, where there is one, they write text of every kind.
    """
    vocabulary = tokenizer.get_vocab()
    if "<|endoftext|>" in vocabulary:
        return [vocabulary["<|endoftext|>"]]
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    return [int(min(end_tokens(model, tokenizer), default=0))]


_MARK = "\u2402mark\u2402"


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Texts of the chat template before and after the first question of a conversation.

    Returns:
        Both texts, the second up to where the answer begins; None without a template, or where
        it changes the user's text.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        whole = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
            )
        )
    except Exception:  # a template is a program, and may refuse a lone question
        return None
    before, mark, after = whole.partition(_MARK)
    return (before, after) if mark else None


def ordinary_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int = 48,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Ordinary language: half of it text of any kind, half of it what users ask a chat model.

    Args:
        model: Who writes.
        tokenizer: Its tokenizer.
        count: Texts.
        length: Tokens of each at most, its beginning not counted.
        progress: Called after every batch.

    Returns:
        Tokens of each, its beginning (BOS, or a chat template's) included; texts of fewer than
        four tokens are left out.
    """
    start, frame = text_start(model, tokenizer), chat_frame(tokenizer)
    begun = [start] * (count if frame is None else count - count // 2)
    if frame is not None:
        head = tokenizer(frame[0], add_special_tokens=False)["input_ids"]
        begun += [list(head) if head else start] * (count // 2)
    # Every second one a likely text, the others any.
    begun = [*begun[::2], *begun[1::2]]
    half = -(-len(begun) // 2)
    texts: list[list[int]] = []
    for warmth, heads in ((0.7, begun[:half]), (1.0, begun[half:])):
        texts += sampled(
            model, tokenizer, heads, length, temperature=warmth, stage="ordinary language",
            progress=progress,
        )  # fmt: skip
    return [[*head, *tokens] for head, tokens in zip(begun, texts, strict=True) if len(tokens) > 3]
