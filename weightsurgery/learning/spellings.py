"""Other tokens with which the same answer begins: of another case, with or without a space."""

from __future__ import annotations

from collections.abc import Sequence

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
        whole = _folded(str(self._tokenizer.decode(list(answer))))
        found = []
        for token in candidates:
            if token not in self._known:
                self._known[token] = _folded(str(self._tokenizer.decode([token])))
            own = self._known[token]
            begins = own == whole or (len(own) >= _SURE and whole.startswith(own))
            if begins and own and token != answer[0]:
                found.append(token)
        return found


def _folded(text: str) -> str:
    return text.strip().casefold()
