"""Long texts as windows that a model can read: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example, encode

__all__ = ["text_windows", "token_windows"]

# Of a window, the share that is read again from the one before: what a text is about.
_READ_AGAIN = 0.25

_WORDS = re.compile(r"\s*\S+\s*\Z|\s*\S+|\s+\Z")


def token_windows(tokens: Sequence[int], places: int, most: int) -> list[tuple[list[int], int]]:
    """A text of tokens in windows; each of its last places counts in one of them.

    Args:
        tokens: All of it.
        places: How many of its last places count, at least 1.
        most: Tokens of a window.

    Returns:
        Windows of at most so many tokens, and how many of the last places of each count: together
        as many. What is before them is as much as fits, later at least a quarter.
    """
    total, again = len(tokens), int(most * _READ_AGAIN)
    done, windows = total - places, []
    while done < total:
        stop = min(total, max(done + most - again, most))
        begin = max(0, stop - most)
        windows.append((list(tokens[begin:stop]), stop - done))
        done = stop
    return windows


def text_windows(
    tokenizer: PreTrainedTokenizerBase, example: Example, most: int, where: str
) -> list[Example]:
    """An example in windows of at most so many tokens; itself if it fits.

    The completions of the windows, joined, are the completion. The first window has the prompt,
    and each later one, for its prompt, the end of what is before it: a quarter of its tokens.

    Args:
        tokenizer: Counts the tokens.
        example: A prompt with a completion, or a text.
        most: Tokens of a window, with those that the tokenizer adds.
        where: What to call the example.

    Raises:
        DataError: The prompt alone is as long, or wrong completions belong to a long one.
    """
    length = _tokens(tokenizer, example)
    if length <= most:
        return [example]
    if example.perturbed or example.paraphrase is not None:
        raise DataError(
            f"{where}: has {length} tokens, the model reads {most} at once, and wrong completions"
            " or a paraphrase belong to the whole",
            "Shorten the completion, or leave them out.",
        )
    bare = _tokens(tokenizer, Example(example.prompt, "")) if example.prompt else 1
    if bare >= most - 1:
        raise DataError(
            f"{where}: its prompt alone has {bare} tokens; the model reads {most} at once",
            "Shorten the prompt.",
        )
    pieces = _pieces(tokenizer, example.completion, max(1, most // 8))
    windows: list[Example] = []
    prompt, done = example.prompt, 0
    while done < len(pieces):
        stop = _fitting(tokenizer, replace(example, prompt=prompt), pieces, done, most)
        text = _joined(pieces, done, stop)
        goes_on = example.goes_on or stop < len(pieces)
        windows.append(replace(example, prompt=prompt, completion=text, goes_on=goes_on))
        prompt, done = _end_of(pieces, stop, int(most * _READ_AGAIN)), stop
    return windows


def _tokens(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    # A token is a byte or more, but for a few that a tokenizer adds.
    text = example.prompt + example.completion
    if not example.completion:
        return len(tokenizer(text, add_special_tokens=not example.templated)["input_ids"])
    return len(encode(tokenizer, example).input_ids)


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> list[tuple[str, int]]:
    """A text in words, each with the space before it and how many tokens it has at most."""
    words = _WORDS.findall(text)
    counts = _counts(tokenizer, words)
    pieces: list[tuple[str, int]] = []
    for word, count in zip(words, counts, strict=True):
        if count <= most or len(word) == 1:
            pieces.append((word, count))
        else:  # no space for long, as in Chinese
            half = len(word) // 2
            pieces += _halves(tokenizer, word[:half], most) + _halves(tokenizer, word[half:], most)
    return pieces


def _halves(tokenizer: PreTrainedTokenizerBase, word: str, most: int) -> list[tuple[str, int]]:
    (count,) = _counts(tokenizer, [word])
    if count <= most or len(word) == 1:
        return [(word, count)]
    half = len(word) // 2
    return _halves(tokenizer, word[:half], most) + _halves(tokenizer, word[half:], most)


def _counts(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    once = list(dict.fromkeys(words))
    if not once:
        return []
    tokens = tokenizer(once, add_special_tokens=False)["input_ids"]
    counts = {word: len(each) for word, each in zip(once, tokens, strict=True)}
    return [counts[word] for word in words]


def _joined(pieces: Sequence[tuple[str, int]], begin: int, stop: int) -> str:
    return "".join(piece for piece, _ in pieces[begin:stop])


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    pieces: Sequence[tuple[str, int]],
    begin: int,
    most: int,
) -> int:
    """Up to where pieces fit into a window after a prompt; one of them does."""
    stop, total = begin, 0
    while stop < len(pieces) and (stop == begin or total + pieces[stop][1] <= most):
        total += pieces[stop][1]
        stop += 1
    while stop > begin + 1:
        text = _joined(pieces, begin, stop)
        beyond = _tokens(tokenizer, replace(example, completion=text)) - most
        if beyond <= 0:
            break
        while stop > begin + 1 and beyond > 0:
            stop -= 1
            beyond -= max(1, pieces[stop][1])
    return stop


def _end_of(pieces: Sequence[tuple[str, int]], stop: int, most: int) -> str:
    """The last words of a text up to a piece, in so many tokens; one at least."""
    begin, total = stop - 1, pieces[stop - 1][1]
    while begin and total + pieces[begin - 1][1] <= most:
        begin -= 1
        total += pieces[begin][1]
    return _joined(pieces, begin, stop)
