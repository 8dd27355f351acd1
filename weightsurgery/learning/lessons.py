"""Targets for data that is to be learned: the data's own answers.

The places are those of the answers, after the prompt as it is written and, with a chat template, as
a user would ask it. The end of an answer is left to the model: taught by a text of a few words, it
would fall silent after every answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.truths import place_at
from weightsurgery.learning.unknown import Target
from weightsurgery.learning.wordings import Wording
from weightsurgery.learning.written import chat_frame

__all__ = ["learning_targets"]


def learning_targets(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    parsed: Sequence[ParsedExample],
    *,
    k: int,
    vocabulary: int,
) -> list[Target]:
    """Answers to learn.

    Args:
        tokenizer: The model's.
        examples: What is to be learned.
        parsed: The same, parsed.
        k: Tokens that a distribution holds.
        vocabulary: How many there are.

    Raises:
        DataError: No example has an answer.
    """
    frame, targets = chat_frame(tokenizer), []
    for number, (example, parts) in enumerate(zip(examples, parsed, strict=True)):
        kinds = [parts.chat]
        if example.prompt and not parts.chat and frame is not None:
            kinds.append(True)
        for chat in kinds:
            text = Wording(chat=chat).text(frame, parts.prompt, parts.subject)
            space = "" if chat else parts.completion[: -len(parts.completion.lstrip())]
            answer = space + parts.completion.strip()
            place = place_at(tokenizer, number, Wording(chat=chat), text, answer)
            if place is not None:
                tokens = torch.tensor(place.truth)
                targets.append(
                    Target(
                        place,
                        Expected.sure(tokens, k, vocabulary),
                        (Event(0, place.truth[:1], 1.0),),
                    )
                )
    if not targets:
        raise DataError("no example has an answer to learn", "Give prompts and completions.")
    return targets
