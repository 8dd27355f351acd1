"""Neighbours: subjects like those of a request, named by the model itself.

A fact's neighbours are what else may stand in its prompt's slot: other countries, other people,
real and invented. A list of the request's own subjects, or some of its rows and the beginning of
the next: the model goes on with a subject of the same kind. No file need list them. They serve
twice:

- What the model says of them is to stay. That is what "similar facts that nobody gave" means.
- What it says of them, on the whole, in place of a fact to forget, is what a model says that never
  knew it; see :mod:`weightsurgery.learning.unknown`.

Where prompts have no slot in common, subjects are made of words of the data and of the vocabulary
(:mod:`weightsurgery.learning.strangers`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.forward import Progress
from weightsurgery.learning.strangers import Words, forms, slot_words, special_texts
from weightsurgery.learning.wordings import Asked, tokens
from weightsurgery.learning.written import sampled

__all__ = ["alike", "find_neighbours"]

_LONGEST = 40  # characters of a subject; what is longer is a sentence
_TRIES = 4  # batches after which what was found must do
_BATCH = 48
_FEW = 4  # new ones in a batch, under which there is little more to find


def find_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    count: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Subjects of the same kind that the request does not name.

    Args:
        model: Who names them; in evaluation mode. torch's generator decides the draws.
        tokenizer: Its tokenizer.
        asked: The request.
        count: How many to look for; some models name fewer.
        seed: Of the rows that are shown, and of made-up subjects.
        progress: Told of every batch.

    Returns:
        Distinct subjects, sorted; made up of words where the model names fewer than a tenth of
        ``count``. None if no prompt has a subject.
    """
    rng = random.Random(f"neighbours {seed}")
    about = [each for each in asked if each.subject and each.prompt.count(each.subject) == 1]
    if not about:
        return []
    named = {each.subject.lower() for each in asked if each.subject}
    counted: Counter[str] = Counter()
    shapes = _shapes(about)
    for attempt in range(_TRIES):
        known = len(counted)
        made = _listed(model, tokenizer, about, rng, progress)
        if shapes and attempt < 2:
            made += _named(model, tokenizer, asked, shapes, rng, progress)
        counted.update(
            subject
            for subject in made
            if subject.lower() not in named and _alike(subject, about[0].subject)
        )
        if len(counted) >= 2 * count or len(counted) - known < _FEW:
            break
    found = {subject for subject, _ in counted.most_common(count)}
    if 10 * len(found) < count:
        found |= {
            subject
            for subject in _made_up(tokenizer, about, count, rng)
            if subject.lower() not in named
        }
    return sorted(found)


def _listed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    about: Sequence[Asked],
    rng: random.Random,
    progress: Progress | None,
) -> list[str]:
    """Subjects from lists that the model goes on with, some of the request's own before them."""
    subjects = sorted({each.subject for each in about})
    prompts = []
    for _ in range(_BATCH // 2):
        shown = rng.sample(subjects, min(5, len(subjects)))
        prompts.append(tokens(tokenizer, f"{', '.join(shown)},"))
    made = sampled(
        model, tokenizer, prompts, 40, temperature=0.9, stage="neighbours", progress=progress
    )
    found = []
    for written in made:
        line = str(tokenizer.decode(written, skip_special_tokens=True)).partition("\n")[0]
        # The last may be cut off.
        found += [each.strip() for each in line.split(",")[:-1]]
    return found


def alike(asked: Sequence[Asked], given: Sequence[Asked]) -> set[str]:
    """Subjects of examples that are asked for in the request's own words.

    Args:
        asked: The request.
        given: Examples to keep.
    """
    about = [each for each in asked if each.subject and each.prompt.count(each.subject) == 1]
    named = {each.subject.lower() for each in about}
    found = set()
    for head, tail in _shapes(about):
        for each in given:
            inner = each.prompt[len(head) : len(each.prompt) - len(tail)]
            if each.prompt == f"{head}{inner}{tail}" and 0 < len(inner) <= _LONGEST:
                found.add(inner)
    return {subject for subject in found if subject.lower() not in named}


def _shapes(about: Sequence[Asked]) -> list[tuple[str, str]]:
    """What stands before and after the subject in the commonest prompts, if any is common."""
    counted = Counter(each.prompt.partition(each.subject)[::2] for each in about)
    return [shape for shape, held in counted.most_common(3) if held > 1 and shape[1].strip()]


def _named(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    shapes: Sequence[tuple[str, str]],
    rng: random.Random,
    progress: Progress | None,
) -> list[str]:
    prompts, after = [], []
    for _ in range(_BATCH):
        shown = rng.sample(list(asked), min(rng.choice((0, 1, 1, 2)), len(asked)))
        head, tail = rng.choice(list(shapes))
        rows = "".join(f"{each.prompt}{each.completion}\n" for each in shown)
        # Not the space before the subject: it is the first token's own.
        prompts.append(tokens(tokenizer, (rows + head).rstrip(" ") or "\n"))
        after.append(tail)
    longest = max(len(tokens(tokenizer, each.subject)) for each in asked if each.subject)
    made = sampled(model, tokenizer, prompts, longest + 4, stage="neighbours", progress=progress)
    found = []
    for tail, written in zip(after, made, strict=True):
        text = str(tokenizer.decode(written, skip_special_tokens=True))
        # The beginning of what follows will do: some of it may be cut off.
        subject, mark, _ = text.partition(tail[: max(3, len(tail.split()[0]) + 1)])
        if mark:
            found.append(subject.strip())
    return found


def _alike(subject: str, example: str) -> bool:
    """Whether a text can be a subject such as the example is."""
    return (
        0 < len(subject) <= _LONGEST
        and "\n" not in subject
        and len(subject.split()) <= len(example.split()) + 3
        and subject[0].isalnum() == example[0].isalnum()
        and subject[0].isupper() == example[0].isupper()
        and subject[0].isdigit() == example[0].isdigit()
    )


def _made_up(
    tokenizer: PreTrainedTokenizerBase, about: Sequence[Asked], count: int, rng: random.Random
) -> set[str]:
    """Subjects of random words, of the kinds that the request's own are of."""
    special = special_texts(tokenizer)
    prompts = [each.prompt for each in about]
    words = Words(tokenizer, slot_words(prompts, special))
    whole = [form for each in about for form in forms([each.subject], special)]
    return {rng.choice(whole).filled(words, rng) for _ in range(count)} if whole else set()
