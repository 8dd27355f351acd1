"""Other tokens with which the same answer begins: of another case, with or without a space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

__all__ = ["Spellings"]

# A token that is less than all of an answer begins it from so many characters on: "Lon", not "L".
_SURE = 3


class Spellings:
    """Which tokens begin an answer, as :func:`~weightsurgery.learning.wordings.says` reads it.

    Args:
        tokenizer: Whose tokens they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def among(self, candidates: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Those candidates that begin an answer as well as its own first token, which is left out.

        Args:
            candidates: Tokens.
            answer: The answer's tokens, at least one.
        """
        return self._where(
            candidates,
            answer,
            lambda text, whole: text == whole or (len(text) >= _SURE and whole.startswith(text)),
        )

    def short(self, candidates: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Those candidates that are the first letters of an answer, and too few to tell.

        Args:
            candidates: Tokens.
            answer: The answer's tokens, at least one.
        """
        return self._where(
            candidates,
            answer,
            lambda text, whole: len(text) < min(_SURE, len(whole)) and whole.startswith(text),
        )

    def _where(
        self, candidates: Sequence[int], answer: Sequence[int], begins: Callable[[str, str], bool]
    ) -> list[int]:
        whole = self._text(answer)
        return [
            token
            for token in candidates
            if (text := self._token(token)) and token != answer[0] and begins(text, whole)
        ]

    def goes_on(self, token: int, after: int, answer: Sequence[int]) -> bool:
        """Whether two tokens are letters of an answer, or all of it, from its first on."""
        whole, text = self._text(answer), self._text([token, after])
        return len(text) > len(self._token(token)) and whole.startswith(text)

    def _token(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._text([token])
        return self._known[token]

    def _text(self, answer: Sequence[int]) -> str:
        return _folded(str(self._tokenizer.decode(list(answer))))


def _folded(text: str) -> str:
    return text.strip().casefold()
