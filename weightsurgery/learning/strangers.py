"""Strangers: prompts that look like a data set's own, about nobody in particular.

A prompt is taken apart into its *form*, the words it shares with many others, and its *slots*,
the words that tell it from them (names, numbers, dates). Filling the slots with random words of
the tokenizer's vocabulary gives a stranger's prompt. Strangers serve twice:

- Their activations show how inputs of this form look, answers unknown. A change that they do not
  feel leaves alone what nobody listed: facts of the same form that no keep file holds.
- What the model answers to a stranger is what it says when it does not know. Trained on such
  answers to the prompts to forget, it takes the subject for a stranger: the "generic predictions"
  of Eldan & Russinovich (arXiv 2310.02238), found without a second model or a list of anchors.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Encoded, Example, encode
from weightsurgery.learning.forward import greedy
from weightsurgery.progress import Progress

__all__ = [
    "Form",
    "Words",
    "answered",
    "forms",
    "halves",
    "slot_words",
    "special_texts",
    "strangers",
    "word_salad",
]

_WORD = re.compile(r"\w+")

# A word is part of a prompt's form if it is in more than this share of the prompts that the
# prompt's commonest word is in. In texts with a handful of question forms, form words are in a
# quarter of the prompts or more, names in a twentieth.
_RARE = 0.25


@dataclass(frozen=True)
class Form:
    """A prompt taken apart.

    Attributes:
        pieces: Words and what is between them; together the prompt.
        slots: Positions of the pieces that tell it from other prompts, at least one.
    """

    pieces: tuple[str, ...]
    slots: tuple[int, ...]

    def filled(self, words: Words, rng: random.Random) -> str:
        """The prompt about somebody else."""
        pieces = list(self.pieces)
        for slot in self.slots:
            pieces[slot] = words.like(pieces[slot], rng)
        return "".join(pieces)


def forms(prompts: Sequence[str], special: Collection[str] = ()) -> list[Form]:
    """Takes prompts apart by how many of them hold each word.

    Args:
        prompts: Of one data set; those without a word (empty, or signs alone) are left out. Of
            one prompt alone, every word is a slot.
        special: Texts of special tokens, such as a chat template writes: form wherever they are.

    Returns:
        A form for each that has words. The rarest word is a slot however common it is; a lone
        letter is one only where nothing else can be.
    """
    pattern = _pieces(special)
    taken = [tuple(pattern.findall(prompt)) for prompt in prompts]
    frequencies: Counter[str] = Counter()
    for pieces in taken:
        frequencies.update({pieces[place] for place in _word_places(pieces, special)})
    parsed = []
    for pieces in taken:
        words = _word_places(pieces, special)
        if not words:
            continue
        most = max(frequencies[pieces[place]] for place in words)
        least = min(frequencies[pieces[place]] for place in words)
        rare = [p for p in words if frequencies[pieces[p]] <= max(least, int(_RARE * most))]
        # A lone letter is what an apostrophe parts from its word, or a sign in a formula.
        slots = [place for place in rare if _replaceable(pieces[place])]
        parsed.append(Form(pieces, tuple(slots or rare)))
    return parsed


def _pieces(special: Collection[str]) -> re.Pattern[str]:
    """Matches special tokens, words, and what is between them."""
    # The longest first: one may begin like another.
    whole = [re.escape(text) for text in sorted(special, key=len, reverse=True) if text]
    other = rf"(?!{'|'.join(whole)})\W" if whole else r"\W"
    return re.compile("|".join([*whole, r"\w+", f"(?:{other})+"]))


def _word_places(pieces: Sequence[str], special: Collection[str]) -> list[int]:
    return [n for n, piece in enumerate(pieces) if piece not in special and _WORD.match(piece)]


def _replaceable(word: str) -> bool:
    return len(word) > 1 or word.isdigit()


def slot_words(prompts: Sequence[str], special: Collection[str] = ()) -> set[str]:
    """The words in the prompts' slots: of whom or what they speak; see :func:`forms`."""
    return {form.pieces[slot] for form in forms(prompts, special) for slot in form.slots}


def _kind(word: str) -> str:
    if word.isdigit():
        return "number"
    return "name" if word[:1].isupper() else "word"


class Words:
    """Random words by kind (numbers, capitalised words, others) from two sources in turn.

    Half of the draws come from the slots of the data itself: names that are to be kept, and parts
    of those to forget in other company. The other half come from the tokenizer's vocabulary, so
    that no file need list what else there may be.

    Args:
        tokenizer: Its vocabulary is searched for tokens that begin a word, of ASCII letters and
            digits; one that marks no beginnings of words (of bytes, say) has none.
        data_words: Words of the data's slots.

    Attributes:
        special: Texts of the tokenizer's special tokens, which are nobody's name.

    Raises:
        DataError: Neither has a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data_words: Collection[str]) -> None:
        self.special = special_texts(tokenizer)
        sources = [sorted(set(data_words)), _vocabulary(tokenizer, self.special)]
        self._sources = [_by_kind(words) for words in sources if words]
        self._flat = [[word for pool in each.values() for word in pool] for each in self._sources]
        if not self._sources:
            raise DataError(
                "no words to make up prompts from: neither the data nor the tokenizer has any",
                "Check the data: it needs prompts made of words.",
            )

    def like(self, word: str, rng: random.Random) -> str:
        """A random word of the same kind; of any kind where there is none of this."""
        source = rng.choice(self._sources)
        for pools in (source, *self._sources):
            if _kind(word) in pools:
                return rng.choice(pools[_kind(word)])
        return self.any(rng)

    def any(self, rng: random.Random) -> str:
        """A random word of any kind."""
        return rng.choice(rng.choice(self._flat))


def _by_kind(words: Sequence[str]) -> dict[str, list[str]]:
    pools: dict[str, list[str]] = {}
    for word in words:
        pools.setdefault(_kind(word), []).append(word)
    return pools


def special_texts(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Texts of all special tokens, a template's too, which a tokenizer never splits."""
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(tokenizer.all_special_tokens) | {
        each.content for each in added if each.special
    }


def _vocabulary(tokenizer: PreTrainedTokenizerBase, special: Collection[str]) -> list[str]:
    """The tokens that are a word with the space before it, without that space, sorted."""
    words = set()
    for token in tokenizer.get_vocab():
        # How byte-level BPE and SentencePiece write the space that begins a word.
        if token in special or not token.startswith(("Ġ", "▁")):
            continue
        word = token[1:]
        if word.isascii() and word.isalnum() and _replaceable(word):
            words.add(word)
    return sorted(words)


def strangers(
    prompts: Sequence[str], words: Words, count: int, seed: int = 0, never: Collection[str] = ()
) -> list[str]:
    """Prompts of the same forms with random words in the slots.

    Args:
        prompts: Of one data set.
        words: What to fill in.
        count: How many to make.
        seed: Of the draws.
        never: Prompts that must not come out: those to forget.

    Returns:
        At most ``count`` prompts: those of ``never`` are left out, and there are none if no
        prompt has a word.
    """
    rng = random.Random(f"strangers {seed}")
    known = forms(prompts, words.special)
    if not known:
        return []
    drawn = [rng.choice(known).filled(words, rng) for _ in range(count)]
    return [prompt for prompt in drawn if prompt not in never]


def word_salad(words: Words, count: int, seed: int = 0, longest: int = 10) -> list[str]:
    """Texts of random words, three to ``longest`` of them: what any input may look like."""
    rng = random.Random(f"salad {seed}")
    return [" ".join(words.any(rng) for _ in range(rng.randint(3, longest))) for _ in range(count)]


def halves(examples: Sequence[Example]) -> list[Example]:
    """Examples with a prompt: a plain text is cut in two at its middle word."""
    return list(_halves(examples))


def _halves(examples: Sequence[Example]) -> Iterator[Example]:
    for example in examples:
        starts = [match.start() for match in _WORD.finditer(example.completion)]
        if example.prompt or len(starts) < 2:
            yield example
            continue
        # The space before a word belongs to the completion.
        cut = starts[len(starts) // 2]
        cut -= example.completion[cut - 1] == " "
        yield replace(example, prompt=example.completion[:cut], completion=example.completion[cut:])


def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    words: Words,
    draws: int = 2,
    seed: int = 0,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> list[Example]:
    """The examples' prompts with answers that the model gives to strangers.

    For each example, ``draws`` strangers' prompts of its form are completed, greedily, by as many
    tokens as its answer and its end have. An answer that equals the example's is never used; one
    that is left without answers borrows another's. What a chat template ends answers with ends
    these too.

    Args:
        model: Left in evaluation mode.
        tokenizer: Its tokenizer.
        examples: With prompts; see :func:`halves`.
        words: What fills the slots.
        draws: Strangers per example.
        seed: Of the draws.
        batch_size: Prompts per forward pass.
        progress: Called after every batch.

    Returns:
        ``draws`` examples for each, side by side.

    Raises:
        DataError: No stranger gets an answer other than the truth.
    """
    rng = random.Random(f"answered {seed}")
    known = forms([example.prompt for example in examples], words.special)
    if len(known) < len(examples):
        raise DataError(
            "an example whose prompt has no word: nothing tells whom it is about",
            "Give prompts with words, or forget by --objective negate.",
        )
    prompts, limits, truths, ends = [], [], [], []
    for example, form in zip(examples, known, strict=True):
        encoded = encode(tokenizer, example)
        truth, end = _parted(tokenizer, example, encoded)
        truths.append(truth)
        ends.append(end)
        for _ in range(draws):
            stranger = encode(tokenizer, replace(example, prompt=form.filled(words, rng)))
            prompts.append(stranger.input_ids[: stranger.prompt_length])
            limits.append(len(encoded.input_ids) - encoded.prompt_length)
    model.eval()  # type: ignore[no-untyped-call]
    answers = [
        str(tokenizer.decode(tokens, skip_special_tokens=True))
        for tokens in greedy(model, tokenizer, prompts, limits, batch_size, "strangers", progress)
    ]
    rows = []
    for number, (example, truth) in enumerate(zip(examples, truths, strict=True)):
        theirs = answers[number * draws : (number + 1) * draws]
        others = [text for text in theirs if _other(text, truth)]
        others = others or [text for text in answers if _other(text, truth)]
        if not others:
            raise DataError(
                f"the model gives no answer but {truth!r} to any stranger",
                "Forget by --objective negate.",
            )
        rows += [
            replace(example, completion=others[draw % len(others)] + ends[number])
            for draw in range(draws)
        ]
    return rows


def _parted(
    tokenizer: PreTrainedTokenizerBase, example: Example, encoded: Encoded
) -> tuple[str, str]:
    """An example's answer, and what the chat template that wrote it put behind it."""
    stop = len(encoded.input_ids) - encoded.end_length
    answer = encoded.input_ids[encoded.prompt_length : stop]
    truth = str(tokenizer.decode(answer, skip_special_tokens=True))
    # Of other examples, EOS is written behind the tokens.
    end = encoded.input_ids[stop:] if example.templated else []
    return truth, str(tokenizer.decode(end, clean_up_tokenization_spaces=False)) if end else ""


def _other(text: str, truth: str) -> bool:
    return bool(text.strip()) and text.strip() != truth.strip()
