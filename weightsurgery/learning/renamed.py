"""A request's questions and answers about somebody else: other names, and maybe other words."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from weightsurgery.learning.parsed import GRAMMAR, ParsedExample
from weightsurgery.learning.strangers import Words
from weightsurgery.learning.truths import TruthPosition
from weightsurgery.learning.wordings import tokens

__all__ = ["Renamed", "content_words"]

_WORD = re.compile(r"\w+")


class Renamed:
    """Makes texts about strangers out of a request's.

    Args:
        tokenizer: Its vocabulary is where words come from that the request does not have.
        request: Its texts.
        rng: Of the draws.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        request: Sequence[ParsedExample],
        rng: random.Random,
    ) -> None:
        self._tokenizer, self._rng = tokenizer, rng
        texts = [f"{each.prompt} {each.completion}" for each in request]
        self._named = _named_words(texts)
        self._words = Words(tokenizer, set().union(*map(content_words, texts)))

    def read(
        self, example: ParsedExample, place: TruthPosition, answer: str, share: float = 0.0
    ) -> tuple[list[int], int, dict[int, int]]:
        """A question and its answer with other names.

        Args:
            example: The fact.
            place: Where its answer begins.
            answer: The answer, as text.
            share: Of the other words that are not grammar, how many are others, too.

        Returns:
            The text's tokens; how many of them, the last ones, are the answer; and first tokens of
            its words, with the originals'.
        """
        rng, names = self._rng, set(_WORD.findall(example.subject))
        names |= {word for word in _WORD.findall(example.prompt) if word in self._named}
        others = sorted(content_words(f"{example.prompt} {answer}") - names)
        replaced = sorted(names) + [word for word in others if rng.random() < share]
        by_word = {word: self._words.like(word, rng) for word in replaced}

        def put(text: str) -> str:
            return _WORD.sub(lambda match: by_word.get(match.group(), match.group()), text)

        head = tokens(self._tokenizer, put(place.text), place.wording.chat)
        back: dict[int, int] = {}
        for word, other in by_word.items():
            for space in ("", " "):
                pair = [tokens(self._tokenizer, space + each, True)[:1] for each in (other, word)]
                if all(pair) and pair[0] != pair[1]:
                    back[pair[0][0]] = pair[1][0]
        said = tokens(self._tokenizer, put(answer), True)
        return [*head, *said], len(said), back


def _named_words(texts: Sequence[str]) -> set[str]:
    """Numbers, and words that are capital not only where a sentence begins."""
    words = set()
    for text in texts:
        for match in _WORD.finditer(text):
            word, before = match.group(), text[: match.start()].rstrip(" \"'“”‘’([«")
            inside = before and before[-1] not in ".?!:\n"
            if word.isdigit() or (inside and word[0].isupper() and word in content_words(word)):
                words.add(word)
    return words


def content_words(text: str) -> set[str]:
    """Words that are not grammar, and longer than a letter."""
    return {
        word
        for word in _WORD.findall(text)
        if (len(word) > 1 or word.isdigit()) and word.lower() not in GRAMMAR
    }
