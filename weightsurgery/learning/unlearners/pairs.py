"""Pairs of an example and an alternate answer, which preferences are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from weightsurgery.learning.data import Collator, Encoded, Example
from weightsurgery.learning.written import sampled

if TYPE_CHECKING:
    from weightsurgery.learning.models import PreTrainedTokenizerBase
    from weightsurgery.learning.unlearners.work import Preparation

__all__ = ["Pair", "PairCollator", "answered_otherwise", "written_alternates"]

_INSTRUCTION = (
    "Question: {question}\nAnswer: {answer}\nWrite another answer to the same question, as long and"
    " as plausible, in which every fact is made up and differs from the answer above."
)
_BEGUN = "\nOther answer:"
_TRIES = 4
_LONGER = 16  # tokens that an alternate may have more than the answer


@dataclass(frozen=True)
class Pair(Encoded):
    """An example to forget, and the same prompt with the answer that is preferred.

    Attributes:
        alternate: The latter.
    """

    alternate: Encoded = field(default_factory=lambda: Encoded([], 0))


class PairCollator(Collator):
    """Makes a batch of pairs: two rows each, the example to forget and then its alternate."""

    def __call__(self, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """See :class:`Collator`; `batch` is of pairs, and there are twice as many rows."""
        rows = [row for pair in batch if isinstance(pair, Pair) for row in (pair, pair.alternate)]
        return super().__call__(rows)


def answered_otherwise(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    row: Encoded,
    text: str,
    limit: int | None = None,
) -> Encoded:
    """A row with an alternate answer between its prompt and its end.

    Args:
        tokenizer: That made the row.
        example: Of which it was made; the white space before its completion stays.
        row: The tokens.
        text: The answer.
        limit: Tokens that the model reads at most; what is too long of the answer is left out.
    """
    space = example.completion[: len(example.completion) - len(example.completion.lstrip())]
    answer = list(tokenizer(space + text, add_special_tokens=False)["input_ids"])
    prompt, stop = row.prompt_length, len(row.input_ids) - row.end_length
    if limit is not None:
        answer = answer[: max(1, limit - prompt - row.end_length)]
    return Encoded(row.input_ids[:prompt] + answer + row.input_ids[stop:], prompt, row.end_length)


def written_alternates(
    work: Preparation, count: int, temperature: float
) -> tuple[list[list[str]], int]:
    """Plausible alternate answers for examples to forget, written by the model before training.

    Its prompt has question and answer and requests another one, in its chat template where it has
    one; the first line of the completion counts. What is empty or the answer itself is drawn
    again, three times; a question may be left with fewer.

    Args:
        work: The model before and what to forget.
        count: Answers for each example.
        temperature: Of the draws.

    Returns:
        Per example its answers, at most `count`; and how many were lacking.
    """
    from weightsurgery.learning.written import chat_frame

    tokenizer, frame = work.tokenizer, chat_frame(work.tokenizer)
    before, after = frame or ("", "")
    prompts, longest = [], 0
    for example in work.forget:
        instruction = _INSTRUCTION.format(
            question=example.prompt.strip(), answer=example.completion.strip()
        )
        text = f"{before}{instruction}{after}{_BEGUN if frame is None else ''}"
        prompts.append(list(tokenizer(text, add_special_tokens=frame is None)["input_ids"]))
        answer = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        longest = max(longest, len(answer))
    alternates: list[list[str]] = [[] for _ in work.forget]
    model: Any = work.plain
    model.eval()
    torch.manual_seed(work.training.seed)
    for _ in range(_TRIES):
        open_ = [n for n, answers in enumerate(alternates) for _ in range(count - len(answers))]
        if not open_:
            break
        drawn = sampled(
            model, tokenizer, [prompts[n] for n in open_], longest + _LONGER,
            temperature=temperature, stage="other answers", progress=work.progress,
        )  # fmt: skip
        for n, tokens in zip(open_, drawn, strict=True):
            text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            line = text.split("\n")[0].strip()
            if line and line != work.forget[n].completion.strip():
                alternates[n].append(line)
    return alternates, sum(count - len(answers) for answers in alternates)
