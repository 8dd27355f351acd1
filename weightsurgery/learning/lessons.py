"""What is to be said of data that is to be learned: the data's own answers.

The places are those of the answers, after the prompt as it is written and, with a chat template, as
a user would ask it. The end of an answer is left to the model: taught by a text of a few words, it
would fall silent after every answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.asked import ParsedExample
from weightsurgery.learning.data import Example
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.truths import place_at
from weightsurgery.learning.unknown import Taught
from weightsurgery.learning.wordings import Wording
from weightsurgery.learning.written import chat_frame

__all__ = ["lessons"]


def lessons(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    asked: Sequence[ParsedExample],
    *,
    k: int,
    vocabulary: int,
) -> list[Taught]:
    """Answers to learn.

    Args:
        tokenizer: The model's.
        examples: What is to be learned.
        asked: The same taken apart.
        k: Tokens that a distribution holds.
        vocabulary: How many there are.

    Raises:
        DataError: No example has an answer.
    """
    frame, found = chat_frame(tokenizer), []
    for number, (example, each) in enumerate(zip(examples, asked, strict=True)):
        kinds = [each.chat]
        if example.prompt and not each.chat and frame is not None:
            kinds.append(True)
        for chat in kinds:
            text = Wording(chat=chat).text(frame, each.prompt, each.subject)
            space = "" if chat else each.completion[: -len(each.completion.lstrip())]
            answer = space + each.completion.strip()
            place = place_at(tokenizer, number, Wording(chat=chat), text, answer)
            if place is not None:
                tokens = torch.tensor(place.truth)
                found.append(
                    Taught(place, Expected.sure(tokens, k, vocabulary), 1.0, place.truth[:1])
                )
    if not found:
        raise DataError("no example has an answer to learn", "Give prompts and completions.")
    return found
