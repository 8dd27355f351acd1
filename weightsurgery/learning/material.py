"""What a training by neighbours reads: places to forget at, and all that is to stay as it is."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.asked import ParsedExample, parse_examples
from weightsurgery.learning.data import Example
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.forward import greedy
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.points import save_tensors, writing
from weightsurgery.learning.unknown import Taught
from weightsurgery.learning.windows import token_windows
from weightsurgery.learning.wordings import Wording, says, tokens
from weightsurgery.learning.written import chat_frame, ordinary_texts, sampled
from weightsurgery.progress import Progress

__all__ = ["KEPT", "Material", "Row", "kept_texts", "read_material", "rows_of", "write_material"]

KEPT = ("neighbours", "keep", "language", "subjects")
"""What is to stay: answers about neighbours, keep data, ordinary texts, more of the subjects."""

# Places before the truth at which a text to forget is to be read as before.
_HELD = 4

# Of a keep set: texts as given; prompts that the model answers in its own words, and in a chat.
_GIVEN, _ANSWERED = 128, 32

# Tokens of an ordinary text, BOS included, that are read and not held.
_BEGUN = 4


_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """A text, and what is to be said at its last places.

    Attributes:
        tokens: What is read.
        expected: At the last places, the last of them after all tokens.
        held: At how many of these, the first ones, the model is to say what it says already; all
            of them in texts that are to stay.
        number: Of the fact that the text is about, from 0; −1 where it is about none.
    """

    tokens: tuple[int, ...]
    expected: Expected
    held: int
    number: int = -1


@dataclass(frozen=True)
class Material:
    """All that a training reads.

    Attributes:
        taught: Texts whose last places are to be answered otherwise: as by one who never knew,
            or by what is to be learned.
        stranger: Probability of the tokens that begin the truth at each of these, together, as it
            is to be.
        truth: Those tokens, as it is spelt here or there, its own first.
        kept: What is to stay, by kind; some may be empty.
        guard: Ordinary texts that are not trained on.
        notes: For the record: how many of what, and the wordings.
        learning: The truth is to be said at these places, rather than not to be.
    """

    taught: Sequence[Row]
    stranger: Sequence[float]
    truth: Sequence[Sequence[int]]
    kept: Mapping[str, Sequence[Row]]
    guard: Sequence[Row]
    notes: Mapping[str, Any]
    learning: bool = False


def rows_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[Sequence[int], int]],
    k: int,
    stage: str,
    progress: Progress | None = None,
) -> list[Row]:
    """Texts with what the model, as it is, says at their last places.

    Args:
        model: As it is.
        tokenizer: Pads.
        texts: Tokens read, and how many of the last places count, at least 1.
        k: See :class:`~weightsurgery.learning.expected.Expected`.
        stage: What to call this to ``progress``.
        progress: Told of every batch.
    """
    found: dict[int, Row] = {}
    for number, said in last_probabilities(model, tokenizer, texts, stage=stage, progress=progress):
        expected = Expected.of(said, k).to(torch.device("cpu"))
        found[number] = Row(tuple(texts[number][0]), expected, len(expected))
    return [found[number] for number in range(len(texts))]


def taught_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    taught: Sequence[Taught],
    k: int,
    progress: Progress | None = None,
) -> list[Row]:
    """Texts to forget or learn at; some places before the truth stay as they are.

    But none that is to change: one text may go on from the place of another.
    """
    texts, places = [], {each.place.before for each in taught}
    for each in taught:
        before = each.place.before
        on_the_way = (before[:-back] for back in range(1, min(_HELD + 1, len(before))))
        held = sum(1 for _ in takewhile(lambda place: place not in places, on_the_way))
        texts.append((each.place.read, len(each.expected) + held))
    found = []
    rows = rows_of(model, tokenizer, texts, k, "what is to change", progress)
    for row, each in zip(rows, taught, strict=True):
        held = row.held - len(each.expected)
        joined = Expected.joined([row.expected[:held], each.expected])
        found.append(Row(row.tokens, joined, held, each.place.number))
    return found


def _continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    length: int,
    progress: Progress | None,
) -> list[tuple[list[int], int]]:
    """Prompts with what the model answers; the places of the answer and of its end count."""
    answers = greedy(model, tokenizer, prompts, [length] * len(prompts), 64, "answers", progress)
    return [(p + list(a), len(a) + 1) for p, a in zip(prompts, answers, strict=True)]


def neighbour_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    neighbours: Sequence[str],
    wordings: Sequence[Wording],
    count: int,
    rng: random.Random,
    progress: Progress | None = None,
) -> list[tuple[list[int], int]]:
    """Prompts about neighbours in the wordings of the request, as the model answers them.

    Neighbours whose answer is the truth of one fact are left out: "the capital of Gaul". Answers
    that several facts share, as languages are, stay.
    """
    frame = chat_frame(tokenizer)
    about = [each for each in asked if each.subject and each.prompt.count(each.subject) == 1]
    if not about or not neighbours:
        return []
    # Each neighbour in the request's own words, then in words of any kind.
    drawn = [(other, wordings[0]) for other in rng.sample(list(neighbours), len(neighbours))]
    drawn += [(other, rng.choice(list(wordings))) for other, _ in drawn * 2]
    prompts = []
    for other, wording in drawn[:count]:
        prompt = (each := rng.choice(about)).prompt.replace(each.subject, other, 1)
        prompts.append(tokens(tokenizer, wording.text(frame, prompt, other), wording.chat))
    # An answer of one fact alone names its subject by another name; one of several is a kind.
    held = Counter(each.truth.lower() for each in asked)
    truths = {each.truth for each in asked if held[each.truth.lower()] == 1}
    return [
        (text, places)
        for text, places in _continued(model, tokenizer, prompts, 8, progress)
        if not any(says(truth, _end(tokenizer, text, places)) for truth in truths)
    ]


def _end(tokenizer: PreTrainedTokenizerBase, text: Sequence[int], places: int) -> str:
    return str(tokenizer.decode(list(text)[len(text) - places + 1 :]))


def kept_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[Sequence[Example]],
    progress: Progress | None = None,
    most: int = 256,
) -> tuple[list[tuple[list[int], int]], dict[str, int]]:
    """Keep examples as they are given, as the model answers them, and asked in a chat.

    Args:
        model: As it is.
        tokenizer: Its tokenizer.
        sets: Keep examples, by data set.
        progress: Told of every batch.
        most: Tokens that are read at once: a longer text is several, a longer prompt is not asked.

    Returns:
        The texts; and how many ``texts`` were given and how many of them are ``read``, how many
        prompts were ``given``, ``asked``, and ``too_long`` to be.
    """
    frame = chat_frame(tokenizer)
    found: list[tuple[list[int], int]] = []
    questions: list[list[int]] = []
    counts: Counter[str] = Counter()
    for rows in sets:
        texts: list[tuple[list[int], int]] = []
        prompts: list[list[int]] = []
        chats: list[list[int]] = []
        for example, each in zip(rows, parse_examples(tokenizer, rows), strict=True):
            head = tokens(tokenizer, example.prompt, example.templated) if example.prompt else []
            rest = tokens(
                tokenizer, each.completion if example.prompt else example.completion, True
            )
            whole = [*head, *rest]
            if len(whole) > 1:
                texts += token_windows(whole, len(rest) + (1 if head else 0), most)
            if head and len(head) < most:
                prompts.append(head)
            if head and frame is not None and not example.templated:
                chats.append(tokens(tokenizer, f"{frame[0]}{each.prompt}{frame[1]}", True))
        # Of a large set as much as a training comes to read: a small one is not lost beside it.
        some, own = _spread(texts, _GIVEN), _spread(prompts, _ANSWERED)
        given = sum(bool(each.prompt) for each in rows)
        counts.update(texts=len(texts), read=len(some), given=given, asked=len(own))
        counts["too_long"] += given - len(prompts)
        found += some
        questions += own
        questions += _spread([each for each in chats if len(each) < most], _ANSWERED)
    return found + _continued(model, tokenizer, questions, 8, progress), dict(counts)


def _spread(rows: list[_T], most: int) -> list[_T]:
    """At most so many, from all over."""
    return rows if len(rows) <= most else [rows[n * len(rows) // most] for n in range(most)]


def subject_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    count: int,
    rng: random.Random,
    progress: Progress | None = None,
) -> list[tuple[list[int], int]]:
    """What the model writes about the subjects, up to where it would give the truth."""
    about = [each for each in asked if each.subject]
    if not about:
        return []
    drawn = [about[n % len(about)] for n in range(max(count, len(about)))][:count]
    rng.shuffle(drawn)
    heads = [tokens(tokenizer, each.subject) for each in drawn]
    made = sampled(
        model, tokenizer, heads, 16, temperature=0.9, stage="subjects", progress=progress
    )
    found = []
    for each, head, written in zip(drawn, heads, made, strict=True):
        while written and says(each.truth, str(tokenizer.decode([*head, *written]))):
            written = written[:-1]
        written = written[:-1]  # after it, the truth may begin
        if len(written) > 3:
            found.append(([*head, *written], len(written) + 1))
    return found


def language_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    count: int,
    progress: Progress | None = None,
) -> list[tuple[list[int], int]]:
    """Ordinary texts that give no truth beside its subject; their beginnings do not count.

    After BOS and a token or two a text may be anything, and models are odd there.
    """
    found = []
    for text in ordinary_texts(model, tokenizer, count, 28, progress):
        if len(text) < 2 * _BEGUN:
            continue
        said = str(tokenizer.decode(text))
        if not any(
            each.subject and each.subject in said and says(each.truth, said) for each in asked
        ):
            found.append((text, len(text) - _BEGUN))
    return found


def write_material(material: Material, file: Path) -> None:
    """Keep it for a run that goes on after a kill; whole under its name or not there.

    Raises:
        OutputError: It cannot be written.
    """
    groups = {"taught": material.taught, "guard": material.guard, **material.kept}
    tensors: dict[str, torch.Tensor] = {}
    for name, rows in groups.items():
        if not rows:
            continue
        tensors[f"{name}.read"] = torch.tensor([t for row in rows for t in row.tokens])
        shape = [[len(row.tokens), len(row.expected), row.held, row.number] for row in rows]
        tensors[f"{name}.shape"] = torch.tensor(shape)
        expected = Expected.joined([row.expected for row in rows])
        tensors[f"{name}.tokens"], tensors[f"{name}.logs"] = expected.tokens, expected.logs
    told = {
        "stranger": list(material.stranger),
        "truth": list(material.truth),
        "notes": dict(material.notes),
        "learning": material.learning,
    }
    with writing(file.parent):
        save_tensors(tensors, file, {"told": json.dumps(told)})


def read_material(file: Path) -> Material:
    """What :func:`write_material` wrote."""
    groups: dict[str, list[Row]] = {"taught": [], "guard": [], **{name: [] for name in KEPT}}
    with safe_open(file, "pt") as saved:
        told = json.loads(saved.metadata()["told"])
        held = set(saved.keys())
        for name, rows in groups.items():
            if f"{name}.shape" not in held:
                continue
            read = saved.get_tensor(f"{name}.read").tolist()
            every = Expected(saved.get_tensor(f"{name}.tokens"), saved.get_tensor(f"{name}.logs"))
            text, place = 0, 0
            for length, places, still, number in saved.get_tensor(f"{name}.shape").tolist():
                expected = every[slice(place, place + places)]
                rows.append(Row(tuple(read[text : text + length]), expected, still, number))
                text, place = text + length, place + places
    taught, guard, stranger = groups.pop("taught"), groups.pop("guard"), told["stranger"]
    return Material(taught, stranger, told["truth"], groups, guard, told["notes"], told["learning"])
