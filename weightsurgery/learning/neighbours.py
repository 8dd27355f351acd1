"""Neighbours: subjects like those of a request, named by the model itself.

A fact's neighbours are what else may stand in its prompt's slot: other countries, other people,
real and invented. A list of the request's own subjects: the model goes on with subjects of the same
kind. Some of its rows and the beginning of the next: of all tokens there, the likeliest begin one
each. No file need list them. They serve twice:

- What the model says of them is to stay. That is what "similar facts that nobody gave" means.
- What it says of them, on the whole, in place of a fact to forget, is what a model says that never
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

from weightsurgery.learning.asked import ParsedExample
from weightsurgery.learning.forward import greedy
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.strangers import Words, forms, slot_words, special_texts
from weightsurgery.learning.wordings import says, tokens
from weightsurgery.learning.written import sampled
from weightsurgery.progress import Progress

__all__ = ["alike", "find_neighbours"]

_LONGEST = 40  # characters of a subject; what is longer is a sentence
_TRIES = 3  # batches of lists after which what was found must do
_LISTS = 24
_CONTEXTS = 2  # in which the likelihood of a subject is taken
_FIRST, _FIRST_CONTEXTS = 256, 6  # tokens that may begin one, and in how many contexts
_SIGNS = " -'’.&"  # that names have
_FEW = 4  # new ones in a batch, under which there is little more to find


def find_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
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
        ``count``. None if no prompt has a subject. One with a subject of the request in its name
        is left out: what is said of "native gold" is what is said of gold.
    """
    rng = random.Random(f"neighbours {seed}")
    about = [each for each in asked if each.subject and each.prompt.count(each.subject) == 1]
    if not about:
        return []
    named = {each.subject for each in asked if each.subject}
    own, shapes = sorted({each.subject for each in about}), _shapes(about)
    contexts = _contexts(about, own, shapes, rng)
    scored: dict[str, float] = {}
    for _ in range(_TRIES):
        # What was found leads on to more: lists of Europe alone seldom come to Uganda.
        likely = sorted(scored, key=lambda each: -scored[each])[: max(8, count // 3)]
        made = _listed(model, tokenizer, own, likely, rng, progress)
        if shapes and not scored:
            made += _likeliest(model, tokenizer, about, shapes[0], rng, progress)
        new = sorted(
            {each for each in made if not _names(named, each) and _alike(each, own)} - set(scored)
        )
        scored |= zip(new, _likelihoods(model, tokenizer, contexts, new, progress), strict=True)
        if len(scored) >= 2 * count or len(new) < _FEW:
            break
    found = set(sorted(scored, key=lambda each: -scored[each])[:count])
    if 10 * len(found) < count:
        found |= {
            subject
            for subject in _made_up(tokenizer, about, count, rng)
            if not _names(named, subject)
        }
    return sorted(found)


def _names(named: Collection[str], subject: str) -> bool:
    return any(says(each, subject) for each in named)


def _listed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    own: Sequence[str],
    found_already: Sequence[str],
    rng: random.Random,
    progress: Progress | None,
) -> list[str]:
    """Subjects from lists that the model goes on with.

    Before them stand some of the request's own, and of those found already: the former tell of
    what kind they are to be, the latter where to look.
    """
    prompts = []
    for _ in range(_LISTS):
        shown = rng.sample(found_already, min(3, len(found_already)))
        shown = rng.sample(own, min(5 - len(shown), len(own))) + shown
        prompts.append(tokens(tokenizer, f"{', '.join(shown)},"))
    made = sampled(
        model, tokenizer, prompts, 40, temperature=0.9, stage="neighbours", progress=progress
    )
    found = []
    for written in made:
        line = str(tokenizer.decode(written, skip_special_tokens=True)).partition("\n")[0]
        # The last may be cut off.
        for each in line.split(",")[:-1]:
            found.append(each.strip().removeprefix("and ").removeprefix("or "))
    return found


def alike(asked: Sequence[ParsedExample], given: Sequence[ParsedExample]) -> set[str]:
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


def _shapes(about: Sequence[ParsedExample]) -> list[tuple[str, str]]:
    """What stands before and after the subject in the commonest prompts, if any is common."""
    counted = Counter(each.prompt.partition(each.subject)[::2] for each in about)
    return [shape for shape, held in counted.most_common(3) if held > 1 and shape[1].strip()]


def _likeliest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    about: Sequence[ParsedExample],
    shape: tuple[str, str],
    rng: random.Random,
    progress: Progress | None,
) -> list[str]:
    """Subjects after rows of the request, one for each of the tokens likeliest to begin one.

    Sampled ones say the commonest again and again, and, being seldom, what is no subject at all.
    """
    head, tail = shape
    # Not the space before the subject: it is the first token's own.
    contexts = [
        tokens(tokenizer, (_rows(about, rng) + head).rstrip(" ") or "\n")
        for _ in range(_FIRST_CONTEXTS)
    ]
    rows = [(context, 1) for context in contexts]
    said = sum(
        each[0].double().clamp_min(1e-30).log()
        for _, each in last_probabilities(
            model, tokenizer, rows, stage="neighbours", progress=progress
        )
    )
    assert isinstance(said, torch.Tensor)
    first = said.topk(min(_FIRST, said.numel())).indices.tolist()
    longest = max(len(tokens(tokenizer, each.subject)) for each in about)
    prompts = [[*contexts[0], token] for token in first]
    made = greedy(
        model, tokenizer, prompts, [longest + 3] * len(prompts), 64, "neighbours", progress
    )
    found = []
    for token, written in zip(first, made, strict=True):
        text = str(tokenizer.decode([token, *written], skip_special_tokens=True))
        # The beginning of what follows will do: some of it may be cut off.
        subject, mark, _ = text.partition(tail[: max(3, len(tail.split()[0]) + 1)])
        if mark:
            found.append(subject.strip())
    return found


def _rows(asked: Sequence[ParsedExample], rng: random.Random) -> str:
    shown = rng.sample(list(asked), min(3, len(asked)))
    return "".join(f"{each.prompt}{each.completion}\n" for each in shown)


def _contexts(
    about: Sequence[ParsedExample],
    own: Sequence[str],
    shapes: Sequence[tuple[str, str]],
    rng: random.Random,
) -> list[tuple[str, str]]:
    """Texts before and after a place where a subject of this kind is likely."""
    if not shapes:
        return [
            (f"{', '.join(rng.sample(own, min(5, len(own))))}, ", ",") for _ in range(_CONTEXTS)
        ]
    head, tail = shapes[0]
    return [(_rows(about, rng) + head, tail) for _ in range(_CONTEXTS)]


def _likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[tuple[str, str]],
    subjects: Sequence[str],
    progress: Progress | None,
) -> list[float]:
    """How likely each subject is where one of the request's stood, in nats, up to a constant."""
    rows, told = [], []
    for number, subject in enumerate(subjects):
        for before, after in contexts:
            head = tokens(tokenizer, before.rstrip(" ") or "\n")
            more = f"{before}{subject}{after}"[len(before.rstrip(" ")) :]
            rest = tokens(tokenizer, more, True)
            own = len(tokens(tokenizer, more[: len(more) - len(after)], True))
            rest = rest[: own + 1]  # the name is over
            rows.append(([*head, *rest[:-1]], len(rest)))
            told.append((number, rest))
    found = [0.0] * len(subjects)
    for place, said in last_probabilities(
        model, tokenizer, rows, stage="neighbours", progress=progress
    ):
        number, rest = told[place]
        chosen = said.gather(1, torch.tensor(rest, device=said.device)[:, None])
        found[number] += float(chosen.clamp_min(1e-30).log().sum()) / len(contexts)
    return found


def _alike(subject: str, own: Sequence[str]) -> bool:
    """Whether a text can be a subject such as the request's own are.

    It begins as one of them does, is hardly longer, has no sign that none of them has ("Chile;
    Peru", "Canada (0 results)"), and no digit unless one of them has.
    """
    if not 0 < len(subject) <= _LONGEST:
        return False
    signs = set("".join(own)) | set(_SIGNS)
    first = subject.split()[0]
    # Where names are capital, "the Netherlands" allows for "the Gambia", not for "my son".
    capital = not all(each[0].islower() for each in own)
    if capital and first[0].islower() and first not in {each.split()[0] for each in own}:
        return False
    digits = any(map(str.isdigit, "".join(own)))
    return (
        len(subject.split()) <= max(len(each.split()) for each in own) + 1
        and all(char.isalpha() or char in signs or (digits and char.isdigit()) for char in subject)
        and any(
            subject[0].isalnum() == each[0].isalnum()
            and subject[0].isupper() == each[0].isupper()
            and subject[0].isdigit() == each[0].isdigit()
            for each in own
        )
    )


def _made_up(
    tokenizer: PreTrainedTokenizerBase,
    about: Sequence[ParsedExample],
    count: int,
    rng: random.Random,
) -> set[str]:
    """Subjects of random words, of the kinds that the request's own are of."""
    special = special_texts(tokenizer)
    prompts = [each.prompt for each in about]
    words = Words(tokenizer, slot_words(prompts, special))
    whole = [form for each in about for form in forms([each.subject], special)]
    return {rng.choice(whole).filled(words, rng) for _ in range(count)} if whole else set()
