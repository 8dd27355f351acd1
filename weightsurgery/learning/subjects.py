"""Subjects of examples, and a part of data sets that shares no subject with the rest."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.strangers import forms

__all__ = ["part_of", "subjects"]


def subjects(examples: Sequence[Example], special: Collection[str] = ()) -> list[tuple[str, ...]]:
    """The subject of each example of a set: the words that tell its prompt from the others.

    "Where was Ada Stone born?" and "What did Ada Stone write?" speak of ("Ada", "Stone"), where
    the set asks the same of many others; see :func:`weightsurgery.learning.strangers.forms`. A
    text without a prompt, or a prompt without words, is its own subject.

    Args:
        examples: Of one set.
        special: Texts of special tokens.
    """
    known: dict[str, tuple[str, ...]] = {}
    for form in forms([each.prompt for each in examples if each.prompt], special):
        known["".join(form.pieces)] = tuple(form.pieces[slot] for slot in form.slots)
    texts = [(each.prompt or each.completion) for each in examples]
    return [known.get(text, (text,)) for text in texts]


def part_of(
    sets: Sequence[Sequence[Example]], fraction: float, seed: int = 0, special: Collection[str] = ()
) -> list[list[int]]:
    """A part of data sets, drawn by subject: what it speaks of, the rest does not.

    Args:
        sets: Each at least one example.
        fraction: Of the subjects of all sets, rounded, at least one; at least one is left.
        seed: Of what is drawn.
        special: Texts of special tokens.

    Returns:
        Per set the numbers of the part's examples, from 0, rising; some may have none.

    Raises:
        DataError: A fraction that is none, or all sets speak of one subject.
    """
    if not 0 < fraction < 1:
        raise DataError(f"a part of {fraction:g}", "Give a share between 0 and 1.")
    subject_sets = [subjects(rows, special) for rows in sets]
    distinct = list(dict.fromkeys(each for rows in subject_sets for each in rows))
    if len(distinct) < 2:
        raise DataError(
            "all examples speak of one subject: no part leaves another out",
            "Give data about several.",
        )
    count = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
    taken = set(random.Random(seed).sample(distinct, count))
    return [[n for n, subject in enumerate(rows) if subject in taken] for rows in subject_sets]
