"""Training data of forgetting by neighbours: places to forget at, and texts that are to stay."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.data import Example
from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.forward import greedy
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.parsed import ParsedExample, parse_examples
from weightsurgery.learning.points import save_tensors, writing
from weightsurgery.learning.unknown import Target
from weightsurgery.learning.windows import token_windows
from weightsurgery.learning.wordings import Wording, says, tokens
from weightsurgery.learning.written import chat_frame, ordinary_texts, sampled
from weightsurgery.progress import Progress

__all__ = ["KEPT", "Material", "Row", "kept_texts", "read_material", "rows_of", "write_material"]

KEPT = ("neighbours", "keep", "language", "subjects")
"""Kinds of texts that are to stay: answers about neighbours, keep data, language, subjects."""

# Places before the truth at which a text to forget is to be read as before.
_HELD = 4

# Of a keep set: texts as given; prompts that the model answers in its own words, and in a chat.
_GIVEN, _ANSWERED = 128, 32

# Tokens of an ordinary text, BOS included, that are read and not held.
_BEGUN = 4


_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """A text with target distributions at its last places.

    Attributes:
        tokens: Of the text.
        expected: Targets at the last places, the last of them after all tokens.
        held: How many of these, the first ones, are the model's own predictions; all of them in
            texts that are to stay.
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
        taught: Texts whose last places have new targets: predictions of a model that never knew,
            or the answers to learn.
        events: Of each of these, what is to become more or less likely, at least one.
        kept: Texts that are to stay, by kind; a kind may be empty.
        guard: Ordinary texts that are not trained on.
        notes: For the record: counts of texts, and the wordings.
        learning: The truth is to be learned at these places, not forgotten.
    """

    taught: Sequence[Row]
    events: Sequence[Sequence[Event]]
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
    """Texts with the model's own predictions at their last places as targets.

    Args:
        model: As it is.
        tokenizer: Pads.
        texts: Tokens read, and how many of the last places count, at least 1.
        k: See :class:`~weightsurgery.learning.expected.Expected`.
        stage: What to call this to ``progress``.
        progress: Called after every batch.
    """
    rows: dict[int, Row] = {}
    for n, probs in last_probabilities(model, tokenizer, texts, stage=stage, progress=progress):
        expected = Expected.of(probs, k).to(torch.device("cpu"))
        rows[n] = Row(tuple(texts[n][0]), expected, len(expected))
    return [rows[n] for n in range(len(texts))]


def taught_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    taught: Sequence[Target],
    k: int,
    progress: Progress | None = None,
) -> list[Row]:
    """Texts to forget or learn at; a few places before the truth stay as they are.

    But none that is to change: one text may go on from the place of another.
    """
    texts, places = [], {each.place.before for each in taught}
    for target in taught:
        before = target.place.before
        on_the_way = (before[:-back] for back in range(1, min(_HELD + 1, len(before))))
        held = sum(1 for _ in takewhile(lambda place: place not in places, on_the_way))
        texts.append((target.place.read, len(target.expected) + held))
    joined_rows = []
    rows = rows_of(model, tokenizer, texts, k, "what is to change", progress)
    for row, target in zip(rows, taught, strict=True):
        held = row.held - len(target.expected)
        joined = Expected.joined([row.expected[:held], target.expected])
        joined_rows.append(Row(row.tokens, joined, held, target.place.number))
    return joined_rows


def _continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    length: int,
    progress: Progress | None,
) -> list[tuple[list[int], int]]:
    """Prompts with the model's answers; the places of the answer and of its end count."""
    answers = greedy(model, tokenizer, prompts, [length] * len(prompts), 64, "answers", progress)
    return [(p + list(a), len(a) + 1) for p, a in zip(prompts, answers, strict=True)]


def neighbour_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
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
    examples = [each for each in request if each.subject and each.prompt.count(each.subject) == 1]
    if not examples or not neighbours:
        return []
    # Each neighbour in the request's own words, then in words of any kind.
    drawn = [(other, wordings[0]) for other in rng.sample(list(neighbours), len(neighbours))]
    drawn += [(other, rng.choice(list(wordings))) for other, _ in drawn * 2]
    prompts = []
    for other, wording in drawn[:count]:
        prompt = (example := rng.choice(examples)).prompt.replace(example.subject, other, 1)
        prompts.append(tokens(tokenizer, wording.text(frame, prompt, other), wording.chat))
    # An answer of one fact alone names its subject by another name; one of several is a kind.
    counts = Counter(example.truth.lower() for example in request)
    truths = {example.truth for example in request if counts[example.truth.lower()] == 1}
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
    """Keep examples as they are, with the model's answers, and with its answers in a chat.

    Args:
        model: As it is.
        tokenizer: Its tokenizer.
        sets: Keep examples, by data set.
        progress: Called after every batch.
        most: Tokens that are read at once: a longer text is split, a longer prompt is left out.

    Returns:
        The texts; and the numbers of ``texts`` and of those that are ``read``, of prompts
        ``given``, of those that are ``asked``, and of those that are ``too_long``.
    """
    frame = chat_frame(tokenizer)
    collected: list[tuple[list[int], int]] = []
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
        read, selected = _spread(texts, _GIVEN), _spread(prompts, _ANSWERED)
        given = sum(bool(each.prompt) for each in rows)
        counts.update(texts=len(texts), read=len(read), given=given, asked=len(selected))
        counts["too_long"] += given - len(prompts)
        collected += read
        questions += selected
        questions += _spread([each for each in chats if len(each) < most], _ANSWERED)
    return collected + _continued(model, tokenizer, questions, 8, progress), dict(counts)


def _spread(rows: list[_T], most: int) -> list[_T]:
    """At most so many, evenly spaced."""
    return rows if len(rows) <= most else [rows[n * len(rows) // most] for n in range(most)]


def subject_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    count: int,
    rng: random.Random,
    progress: Progress | None = None,
) -> list[tuple[list[int], int]]:
    """Completions about the subjects, up to where the model would give the truth."""
    examples = [each for each in request if each.subject]
    if not examples:
        return []
    drawn = [examples[n % len(examples)] for n in range(max(count, len(examples)))][:count]
    rng.shuffle(drawn)
    heads = [tokens(tokenizer, example.subject) for example in drawn]
    completions = sampled(
        model, tokenizer, heads, 16, temperature=0.9, stage="subjects", progress=progress
    )
    texts = []
    for example, head, completion in zip(drawn, heads, completions, strict=True):
        while completion and says(example.truth, str(tokenizer.decode([*head, *completion]))):
            completion = completion[:-1]
        completion = completion[:-1]  # after it, the truth may begin
        if len(completion) > 3:
            texts.append(([*head, *completion], len(completion) + 1))
    return texts


def language_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    count: int,
    progress: Progress | None = None,
) -> list[tuple[list[int], int]]:
    """Ordinary texts that give no truth beside its subject; their beginnings do not count.

    After BOS and a token or two a text may be anything, and models are odd there.
    """
    texts = []
    for text in ordinary_texts(model, tokenizer, count, 28, progress):
        if len(text) < 2 * _BEGUN:
            continue
        decoded = str(tokenizer.decode(text))
        if not any(
            each.subject and each.subject in decoded and says(each.truth, decoded)
            for each in request
        ):
            texts.append((text, len(text) - _BEGUN))
    return texts


def write_material(material: Material, file: Path) -> None:
    """Save it for a run that goes on after a kill; whole under its name or not there.

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
    metadata = {
        "events": [[asdict(each) for each in row] for row in material.events],
        "notes": dict(material.notes),
        "learning": material.learning,
    }
    with writing(file.parent):
        save_tensors(tensors, file, {"told": json.dumps(metadata)})


def read_material(file: Path) -> Material:
    """Reads what :func:`write_material` wrote."""
    groups: dict[str, list[Row]] = {"taught": [], "guard": [], **{name: [] for name in KEPT}}
    with safe_open(file, "pt") as saved:
        meta = json.loads(saved.metadata()["told"])
        stored = set(saved.keys())
        for name, rows in groups.items():
            if f"{name}.shape" not in stored:
                continue
            read = saved.get_tensor(f"{name}.read").tolist()
            joined = Expected(saved.get_tensor(f"{name}.tokens"), saved.get_tensor(f"{name}.logs"))
            text, place = 0, 0
            for length, places, still, number in saved.get_tensor(f"{name}.shape").tolist():
                expected = joined[slice(place, place + places)]
                rows.append(Row(tuple(read[text : text + length]), expected, still, number))
                text, place = text + length, place + places
    taught, guard = groups.pop("taught"), groups.pop("guard")
    events = [
        [Event(**{**each, "tokens": tuple(each["tokens"])}) for each in row]
        for row in meta["events"]
    ]
    return Material(taught, events, groups, guard, meta["notes"], meta["learning"])
