"""A model's answers, and which of them are right.

An answer is what greedy decoding writes after a prompt, up to an end of text or the end of its
line; of a truth of several lines, of as many. A model that was trained on text goes on after an
answer, with a full stop, an explanation or the next question: so an answer is right if it *begins*
with the truth. In a conversation models speak in sentences ("The capital of France is Paris."): a
turn is right if it *contains* the truth. Where completions are all that was ever learned, and end,
both are exact match.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.data import Encoded, Example, encode_all
from weightsurgery.learning.forward import Forced, greedy, teacher_forced
from weightsurgery.learning.metrics import begins_with, contains, first_lines, lines_of, settled
from weightsurgery.learning.models import context_length
from weightsurgery.progress import Progress

__all__ = ["answered", "answers", "headline", "right_answers", "truths"]

_BEYOND = 32  # tokens that an answer may be longer than the longest truth


def headline(examples: Sequence[Example]) -> str:
    """The metric that says what a model knows of a set: `begins_with`, of chat `contains`."""
    return "contains" if any(each.templated for each in examples) else "begins_with"


def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int = 128,
) -> float:
    """The share of examples that a model answers; what edits are chosen by.

    Args:
        model: A causal language model; left in evaluation mode.
        tokenizer: Its tokenizer.
        examples: At least one. Rendered by a chat template, an answer must contain the truth; else
            begin with it.
        batch_size: Examples per forward pass.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: There are no examples.
        NonFiniteError: The model's predictions are NaN.
    """
    if not examples:
        raise ValueError("answered needs at least one example")
    encoded = encode_all(tokenizer, examples)
    forced = teacher_forced(model, tokenizer, encoded, batch_size)
    anywhere = [each.templated for each in examples]
    right = right_answers(model, tokenizer, encoded, forced, anywhere, batch_size)
    return sum(right) / len(right)


def right_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    forced: Sequence[Forced],
    anywhere: Sequence[bool],
    batch_size: int = 32,
    stage: str = "",
    progress: Progress | None = None,
) -> list[bool]:
    """Which answers begin with the truth, or contain it, with no more generated than that takes.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        encoded: Prompts and completions.
        forced: What the model predicts for them: where that is every token and the end, nothing
            is generated.
        anywhere: Per example whether to contain is enough.
        batch_size: Examples per forward pass.
        stage: What to call this to `progress`.
        progress: Called after every batch.
    """
    right = [bool(each.end_length and each.ended(each.right).all()) for each in forced]
    open_ = [index for index, exact in enumerate(right) if not exact]
    all_truths = truths(tokenizer, encoded)
    wanted = [all_truths[index] for index in open_]

    def stop(place: int, text: str) -> bool:
        truth = wanted[place]
        return _over(truth, text) or settled(truth, text, anywhere[open_[place]])

    prompts, limits = _prompts(model, encoded)
    texts = greedy(
        model, tokenizer, [prompts[index] for index in open_], [limits[index] for index in open_],
        batch_size, stage, progress, stop,
    )  # fmt: skip
    for index, truth, tokens in zip(open_, wanted, texts, strict=True):
        text = first_lines(_text(tokenizer, tokens), lines_of(truth))
        right[index] = (contains if anywhere[index] else begins_with)(truth, text)
    return right


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    batch_size: int = 32,
    stage: str = "",
    progress: Progress | None = None,
) -> list[tuple[str, str]]:
    """Whole answers, of at most 32 tokens more than the longest completion has.

    Returns:
        Per example its answer, and as much of it as fits into the tokens of the longest completion.
    """
    wanted = truths(tokenizer, encoded)
    prompts, limits = _prompts(model, encoded)
    longest = max(len(row.input_ids) - row.prompt_length for row in encoded)
    generated = greedy(
        model, tokenizer, prompts, limits, batch_size, stage, progress,
        lambda place, text: _over(wanted[place], text),
    )  # fmt: skip

    def cut(tokens: Sequence[int], truth: str) -> str:
        return first_lines(_text(tokenizer, tokens), lines_of(truth))

    return [
        (cut(tokens, truth), cut(tokens[:longest], truth))
        for tokens, truth in zip(generated, wanted, strict=True)
    ]


def truths(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Encoded]) -> list[str]:
    """The completions as the tokenizer writes them, without their ends, as it writes answers."""
    return [
        _text(tokenizer, row.input_ids[row.prompt_length : len(row.input_ids) - row.end_length])
        for row in encoded
    ]


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def _over(truth: str, text: str) -> bool:
    """Whether a text goes beyond as many lines as a truth has."""
    return text.lstrip().count("\n") >= lines_of(truth)


def _prompts(
    model: PreTrainedModel, encoded: Sequence[Encoded]
) -> tuple[list[list[int]], list[int]]:
    """Prompts to complete, and the most tokens to add to each."""
    prompts = [row.input_ids[: row.prompt_length] for row in encoded]
    longest = max((len(row.input_ids) - row.prompt_length for row in encoded), default=0) + _BEYOND
    context = context_length(model) or float("inf")
    return prompts, [int(min(longest, context - len(prompt))) for prompt in prompts]
