"""Neighbours: subjects like those of a request, named by the model itself.

A fact's neighbours are what else may stand in its prompt's slot: other countries, other people,
real and invented. A list of the request's own subjects: the model goes on with subjects of the same
kind. Some of its rows and the beginning of the next: of all tokens there, the likeliest begin one
each. No file need list them. They serve twice:

- Answers about them are to stay: they are the "similar facts that nobody gave".
- Predictions for them, on the whole, in place of a fact to forget, are those of a model that never
  knew it; see :mod:`weightsurgery.learning.unknown`.

Where prompts have no slot in common, subjects are made of words of the data and of the vocabulary
(:mod:`weightsurgery.learning.strangers`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.forward import greedy
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.strangers import Words, forms, slot_words, special_texts
from weightsurgery.learning.wordings import says, tokens
from weightsurgery.learning.written import sampled
from weightsurgery.progress import Progress

__all__ = ["alike", "find_neighbours"]

_LONGEST = 40  # characters of a subject; what is longer is a sentence
_TRIES = 3  # batches of lists at most
_LISTS = 24
_CONTEXTS = 2  # in which the likelihood of a subject is taken
_FIRST, _FIRST_CONTEXTS = 256, 6  # tokens that may begin one, and in how many contexts
_SIGNS = " -'’.&"  # that names have
_FEW = 4  # new ones in a batch, under which there is little more to find


def find_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    count: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Subjects of the same kind that the request does not name.

    Args:
        model: Names them; in evaluation mode. torch's generator decides the draws.
        tokenizer: Its tokenizer.
        request: The request.
        count: How many to look for; some models name fewer.
        seed: Of the rows that are shown, and of made-up subjects.
        progress: Called after every batch.

    Returns:
        Distinct subjects, sorted; made up of words where the model names fewer than a tenth of
        ``count``. None if no prompt has a subject. One with a subject of the request in its name
        is left out: the answer about "native gold" is that about gold.
    """
    rng = random.Random(f"neighbours {seed}")
    examples = [each for each in request if each.subject and each.prompt.count(each.subject) == 1]
    if not examples:
        return []
    named = {each.subject for each in request if each.subject}
    subjects, shapes = sorted({each.subject for each in examples}), _shapes(examples)
    contexts = _contexts(examples, subjects, shapes, rng)
    scored: dict[str, float] = {}
    for _ in range(_TRIES):
        # Known ones lead on to more: lists of Europe alone seldom come to Uganda.
        likely = sorted(scored, key=lambda each: -scored[each])[: max(8, count // 3)]
        candidates = _listed(model, tokenizer, subjects, likely, rng, progress)
        if shapes and not scored:
            candidates += _likeliest(model, tokenizer, examples, shapes[0], rng, progress)
        new = sorted(
            {each for each in candidates if not _names(named, each) and _alike(each, subjects)}
            - set(scored)
        )
        scored |= zip(new, _likelihoods(model, tokenizer, contexts, new, progress), strict=True)
        if len(scored) >= 2 * count or len(new) < _FEW:
            break
    neighbours = set(sorted(scored, key=lambda each: -scored[each])[:count])
    if 10 * len(neighbours) < count:
        neighbours |= {
            subject
            for subject in _made_up(tokenizer, examples, count, rng)
            if not _names(named, subject)
        }
    return sorted(neighbours)


def _names(named: Collection[str], subject: str) -> bool:
    return any(says(each, subject) for each in named)


def _listed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[str],
    neighbours: Sequence[str],
    rng: random.Random,
    progress: Progress | None,
) -> list[str]:
    """Subjects from lists that the model goes on with.

    Before them stand subjects of the request and neighbours known so far: the former show of what
    kind they are to be, the latter lead to more.
    """
    prompts = []
    for _ in range(_LISTS):
        shown = rng.sample(neighbours, min(3, len(neighbours)))
        shown = rng.sample(subjects, min(5 - len(shown), len(subjects))) + shown
        prompts.append(tokens(tokenizer, f"{', '.join(shown)},"))
    completions = sampled(
        model, tokenizer, prompts, 40, temperature=0.9, stage="neighbours", progress=progress
    )
    names = []
    for completion in completions:
        line = str(tokenizer.decode(completion, skip_special_tokens=True)).partition("\n")[0]
        # The last may be cut off.
        for name in line.split(",")[:-1]:
            names.append(name.strip().removeprefix("and ").removeprefix("or "))
    return names


def alike(request: Sequence[ParsedExample], given: Sequence[ParsedExample]) -> set[str]:
    """Subjects of examples whose prompts have the request's form.

    Args:
        request: The request.
        given: Examples to keep.
    """
    examples = [each for each in request if each.subject and each.prompt.count(each.subject) == 1]
    named = {each.subject.lower() for each in examples}
    subjects = set()
    for head, tail in _shapes(examples):
        for example in given:
            inner = example.prompt[len(head) : len(example.prompt) - len(tail)]
            if example.prompt == f"{head}{inner}{tail}" and 0 < len(inner) <= _LONGEST:
                subjects.add(inner)
    return {subject for subject in subjects if subject.lower() not in named}


def _shapes(examples: Sequence[ParsedExample]) -> list[tuple[str, str]]:
    """Texts before and after the subject in the commonest prompts, if any is common."""
    counts = Counter(each.prompt.partition(each.subject)[::2] for each in examples)
    return [shape for shape, count in counts.most_common(3) if count > 1 and shape[1].strip()]


def _likeliest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParsedExample],
    shape: tuple[str, str],
    rng: random.Random,
    progress: Progress | None,
) -> list[str]:
    """Subjects after rows of the request, one for each of the tokens likeliest to begin one.

    Sampled ones say the commonest again and again, and, being seldom, what is no subject at all.
    """
    head, tail = shape
    # Not the space before the subject: it belongs to the first token.
    contexts = [
        tokens(tokenizer, (_rows(examples, rng) + head).rstrip(" ") or "\n")
        for _ in range(_FIRST_CONTEXTS)
    ]
    rows = [(context, 1) for context in contexts]
    log_probabilities = sum(
        probabilities[0].double().clamp_min(1e-30).log()
        for _, probabilities in last_probabilities(
            model, tokenizer, rows, stage="neighbours", progress=progress
        )
    )
    assert isinstance(log_probabilities, torch.Tensor)
    first = log_probabilities.topk(min(_FIRST, log_probabilities.numel())).indices.tolist()
    longest = max(len(tokens(tokenizer, example.subject)) for example in examples)
    prompts = [[*contexts[0], token] for token in first]
    completions = greedy(
        model, tokenizer, prompts, [longest + 3] * len(prompts), 64, "neighbours", progress
    )
    subjects = []
    for token, completion in zip(first, completions, strict=True):
        text = str(tokenizer.decode([token, *completion], skip_special_tokens=True))
        # The beginning of what follows will do: some of it may be cut off.
        subject, mark, _ = text.partition(tail[: max(3, len(tail.split()[0]) + 1)])
        if mark:
            subjects.append(subject.strip())
    return subjects


def _rows(examples: Sequence[ParsedExample], rng: random.Random) -> str:
    shown = rng.sample(list(examples), min(3, len(examples)))
    return "".join(f"{each.prompt}{each.completion}\n" for each in shown)


def _contexts(
    examples: Sequence[ParsedExample],
    subjects: Sequence[str],
    shapes: Sequence[tuple[str, str]],
    rng: random.Random,
) -> list[tuple[str, str]]:
    """Texts before and after a place where a subject of this kind is likely."""
    if not shapes:
        return [
            (f"{', '.join(rng.sample(subjects, min(5, len(subjects))))}, ", ",")
            for _ in range(_CONTEXTS)
        ]
    head, tail = shapes[0]
    return [(_rows(examples, rng) + head, tail) for _ in range(_CONTEXTS)]


def _likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[tuple[str, str]],
    subjects: Sequence[str],
    progress: Progress | None,
) -> list[float]:
    """Log-likelihood of each subject in place of the request's, in nats, up to a constant."""
    rows, targets = [], []
    for number, subject in enumerate(subjects):
        for before, after in contexts:
            head = tokens(tokenizer, before.rstrip(" ") or "\n")
            more = f"{before}{subject}{after}"[len(before.rstrip(" ")) :]
            rest = tokens(tokenizer, more, True)
            length = len(tokens(tokenizer, more[: len(more) - len(after)], True))
            rest = rest[: length + 1]  # the name is over
            rows.append(([*head, *rest[:-1]], len(rest)))
            targets.append((number, rest))
    totals = [0.0] * len(subjects)
    for row, probabilities in last_probabilities(
        model, tokenizer, rows, stage="neighbours", progress=progress
    ):
        number, rest = targets[row]
        chosen = probabilities.gather(1, torch.tensor(rest, device=probabilities.device)[:, None])
        totals[number] += float(chosen.clamp_min(1e-30).log().sum()) / len(contexts)
    return totals


def _alike(subject: str, subjects: Sequence[str]) -> bool:
    """Whether a text can be a subject such as the request's.

    It begins as one of them does, is hardly longer, has no sign that none of them has ("Chile;
    Peru", "Canada (0 results)"), and no digit unless one of them has.
    """
    if not 0 < len(subject) <= _LONGEST:
        return False
    signs = set("".join(subjects)) | set(_SIGNS)
    first = subject.split()[0]
    # Where names are capital, "the Netherlands" allows for "the Gambia", not for "my son".
    capital = not all(each[0].islower() for each in subjects)
    if capital and first[0].islower() and first not in {each.split()[0] for each in subjects}:
        return False
    digits = any(map(str.isdigit, "".join(subjects)))
    return (
        len(subject.split()) <= max(len(each.split()) for each in subjects) + 1
        and all(char.isalpha() or char in signs or (digits and char.isdigit()) for char in subject)
        and any(
            subject[0].isalnum() == each[0].isalnum()
            and subject[0].isupper() == each[0].isupper()
            and subject[0].isdigit() == each[0].isdigit()
            for each in subjects
        )
    )


def _made_up(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParsedExample],
    count: int,
    rng: random.Random,
) -> set[str]:
    """Subjects of random words, of the same forms as the request's."""
    special = special_texts(tokenizer)
    prompts = [example.prompt for example in examples]
    words = Words(tokenizer, slot_words(prompts, special))
    known = [form for example in examples for form in forms([example.subject], special)]
    return {rng.choice(known).filled(words, rng) for _ in range(count)} if known else set()
