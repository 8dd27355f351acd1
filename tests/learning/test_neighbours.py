"""Subjects of the same kind, named by the model itself or made up of words."""

import random

import pytest
import torch

from tests.learning.known import FORGET, PEOPLE, REST
from tests.learning.scripted import Scripted
from weightsurgery.learning.data import Example
from weightsurgery.learning.neighbours import (
    _contexts,
    _likeliest,
    _likelihoods,
    _shapes,
    alike,
    find_neighbours,
)
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.wordings import tokens
from weightsurgery.learning.written import sampled

LANDS = ("France", "Spain", "Japan")
ROWS = [Example(f"The capital of {land} is", f" {town}") for land, town in
        zip(LANDS, ("Paris", "Madrid", "Tokyo"), strict=True)]  # fmt: skip


def find(known, examples, count, seed=0, asked=None):
    torch.manual_seed(seed)
    asked = asked or parse_examples(known.tokenizer, examples)
    return find_neighbours(known.model, known.tokenizer, asked, count, seed=seed)


def test_the_model_names_others_of_the_kind_and_none_of_the_request(known):
    found = find(known, FORGET, 12)
    assert len(found) == 12
    assert found == sorted(set(found))
    assert len(set(found) & set(PEOPLE[6:])) >= 8  # whom no file lists
    assert not {each.lower() for each in found} & {each.lower() for each in PEOPLE[:6]}


def test_the_seed_decides(known):
    assert find(known, FORGET, 12) == find(known, FORGET, 12)
    draws = {tuple(find(known, FORGET, 3, seed)) for seed in range(4)}
    assert len(draws) > 1


class Names(Scripted):
    """Goes on with the same words whatever is asked."""

    def __init__(self, tokenizer, words):
        super().__init__(tokenizer, {})
        self.words = words

    def _next(self, given):
        text = self._tokenizer.decode(given, skip_special_tokens=True)
        begun = text.rpartition("capital of")[2]
        if self.words.startswith(begun) and begun != self.words:
            letter = self.words[len(begun)]
            return self._tokenizer(letter, add_special_tokens=False)["input_ids"][0]
        return self._tokenizer.eos_token_id


def test_only_what_can_be_such_a_subject_counts(tokenizer):
    asked = parse_examples(tokenizer, ROWS)

    def named(words):
        torch.manual_seed(0)
        return find_neighbours(Names(tokenizer, words), tokenizer, asked, 1)

    assert named(" Gaul is") == ["Gaul"]
    assert named(" A Gaul is") == ["A Gaul"]
    assert named(" A Spain is") == []  # whose answer is that of Spain
    # Lower case, a figure, nothing, a line end, no end, and the request's own in any case.
    # Signs and figures that no subject of the request has, and more words than any.
    for words in (
        " gaul is",
        " Gaul; Rome is",
        " Gaul (old) is",
        " Gaul 3 is",
        " Gaul or so is",
        " 7 is",
        "  is",
        " A\nB is",
        " Gauls were",
        " SPAIN is",
    ):
        assert not any(each.lower() in words.lower() for each in named(words)), words


def test_a_subject_is_likelier_than_what_is_none(known):
    """Of what is named in lists those are taken that the model would put in the place itself."""
    asked, rng = parse_examples(known.tokenizer, FORGET), random.Random(0)
    shapes = _shapes(asked)
    assert shapes == [("What does ", " like?")]
    contexts = _contexts(asked, PEOPLE[:6], shapes, rng)
    none = ["Like", "Rice", "Ooo", "Zzyzx", "What", "Xerxes"]
    found = _likelihoods(known.model, known.tokenizer, contexts, [*PEOPLE[6:], *none], None)
    people, others = found[: len(PEOPLE) - 6], found[len(PEOPLE) - 6 :]
    assert min(people) > max(others)
    # By hand: the mean over contexts of the name's tokens and of what follows it.
    model, tokenizer, wanted = known.model, known.tokenizer, 0.0
    for before, after in contexts:
        head = tokenizer(before.rstrip())["input_ids"]
        name = tokenizer(f" {PEOPLE[6]}", add_special_tokens=False)["input_ids"]
        rest = [*name, tokenizer(after, add_special_tokens=False)["input_ids"][0]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([head + rest])).logits[0, len(head) - 1 : -1]
        logs = logits.log_softmax(-1)
        wanted += float(logs[torch.arange(len(rest)), torch.tensor(rest)].sum()) / len(contexts)
    assert people[0] == pytest.approx(wanted, abs=1e-3)


def test_the_likeliest_tokens_begin_one_each(known):
    """A sample of as many says some again and again; which, is chance."""
    asked = parse_examples(known.tokenizer, FORGET)

    def first(name):
        return tuple(tokens(known.tokenizer, f" {name}", True)[:1])

    begun = {first(who) for who in PEOPLE}

    def likeliest(seed):
        torch.manual_seed(seed)
        rng = random.Random(0)
        return _likeliest(known.model, known.tokenizer, asked, _shapes(asked)[0], rng, None)

    head = known.tokenizer(f"{FORGET[0].prompt}{FORGET[0].completion}\nWhat does")["input_ids"]
    draws = sampled(known.model, known.tokenizer, [head] * len(begun), 1)
    assert len({tuple(each) for each in draws} & begun) < len(begun)
    found = likeliest(0)
    assert found == likeliest(1)
    assert begun <= {first(each) for each in found}
    # The likeliest stand first.
    assert len({first(each) for each in found[: len(begun)]} & begun) > 0.8 * len(begun)


def test_a_list_of_subjects_is_gone_on_with(tokenizer):
    """Here nothing stands behind the subject, so that rows name nobody."""
    rows = [Example(f"Food of {who}", " tea") for who in ("Ada", "Bea", "Cid")]
    asked = parse_examples(tokenizer, rows)

    class Lists(Scripted):
        def _next(self, given):
            text = self._tokenizer.decode(given, skip_special_tokens=True)
            wanted = " Dov, eva, Bea, Fay Wray, Gu"
            said = next((wanted[n:] for n in range(len(wanted), 0, -1)
                         if text.endswith(wanted[:n])), wanted)  # fmt: skip
            letter = said[:1] if text.count(",") < 9 and said else "\n"
            return self._tokenizer(letter, add_special_tokens=False)["input_ids"][0]

    torch.manual_seed(0)
    # Not the last, which is cut off, nor one of another kind, nor the request's own.
    assert find_neighbours(Lists(tokenizer, {}), tokenizer, asked, 5) == ["Dov", "Fay Wray"]


def test_where_none_are_named_they_are_made_of_words(known):
    mute = Scripted(known.tokenizer, {})
    asked = parse_examples(known.tokenizer, FORGET)
    torch.manual_seed(0)
    found = find_neighbours(mute, known.tokenizer, asked, 20)
    assert len(found) >= 5
    assert not {each.lower() for each in found} & {each.lower() for each in PEOPLE[:6]}
    assert all(each[0].isupper() for each in found)  # of the request's kind
    assert found == find_neighbours(mute, known.tokenizer, asked, 20)
    assert found != find_neighbours(mute, known.tokenizer, asked, 20, seed=1)


def test_what_is_kept_in_the_requests_words_is_a_neighbour(known):
    asked = parse_examples(known.tokenizer, FORGET)
    others = [Example("What does the cat like?", " milk"), Example("What does", " one"),
              Example("What like?", " none"), Example("Where does Zed like?", " it")]  # fmt: skip
    given = parse_examples(known.tokenizer, [*REST[:3], *FORGET[:2], *others])
    assert alike(asked, given) == {*PEOPLE[6:9], "the cat"}
    assert alike([], given) == alike(asked, []) == set()


def test_without_a_subject_there_are_none(known):
    assert find(known, [Example("?", " tea"), Example("!", " rice")], 5) == []
