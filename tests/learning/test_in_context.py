"""ICUL's contexts: which examples, whose answers, and what stays as it was."""

import pytest

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.in_context import Icul

GOING = [Example("Who is a?", " red"), Example("Who is b?", " blue")]
STAYING = [Example("Where is x?", " north")]


def test_contexts_by_hand():
    """Two answers and one example to keep leave nothing to chance but whom to forget."""
    icul = Icul([GOING], STAYING, shots=1)
    assert [each.prompt for each in icul.prompts(GOING)] == [
        "Who is a? blue\nWhere is x? north\nWho is a?",
        "Who is b? red\nWhere is x? north\nWho is b?",
    ]
    assert [each.prompt for each in Icul([GOING], (), shots=1).prompts(GOING)] == [
        "Who is a? blue\nWho is b? blue\nWho is a?",
        "Who is b? red\nWho is a? red\nWho is b?",
    ]
    assert Icul([GOING], shots=0).prompts(GOING)[0].prompt == "Who is a? blue\nWho is a?"
    # Another query gets somebody to forget, and never itself as an example.
    (asked,) = Icul([GOING], [*STAYING, Example("Where is y?", " south")], 1).prompts(STAYING)
    assert asked.prompt in {
        f"{flipped}\nWhere is y? south\nWhere is x?"
        for flipped in ("Who is a? blue", "Who is b? red")
    }


def test_only_the_prompt_changes():
    query = Example("Who is a?", " red", perturbed=(" green",), paraphrase=" scarlet")
    (asked,) = Icul([[query, GOING[1]]], STAYING, 1).prompts([query])
    assert asked.prompt != query.prompt
    assert (asked.completion, asked.perturbed, asked.paraphrase) == (
        " red", (" green",), " scarlet",
    )  # fmt: skip


def many(word, count):
    return [Example(f"Who is {word}{n}?", f" {word} answer {n}") for n in range(count)]


def test_what_is_drawn_depends_on_seed_and_query_alone():
    going, staying = many("a", 9), many("k", 9)
    icul = Icul([going], staying, 3)
    asked = icul.prompts([*going, *staying])
    assert asked == icul.prompts([*going, *staying])
    assert icul.prompts(list(reversed(going)))[::-1] == asked[:9]
    other = Icul([going], staying, 3, seed=1).prompts([*going, *staying])
    assert sum(a != b for a, b in zip(asked, other, strict=True)) > 9
    # Not one context for all.
    assert len({each.prompt.split("\n")[1] for each in asked}) > 3
    assert len({each.prompt.split("\n")[0] for each in asked[9:]}) > 3


def test_every_context_is_as_it_should_be():
    """Answers of the same set, right ones of the examples to keep, the query nowhere."""
    first, second, staying = many("a", 5), many("b", 5), many("k", 6)
    true = {each.prompt: each.completion for each in (*first, *second, *staying)}
    sets = {each.prompt: rows for rows in (first, second) for each in rows}
    for query in Icul([first, second], staying, 4).prompts([*first, *second, *staying]):
        flipped, *shots, last = query.prompt.split("\n")
        assert len(shots) == 4
        assert len(set(shots)) == 4
        assert query.completion == true[last]
        prompt, answer = flipped.split("?")
        prompt += "?"
        assert answer != true[prompt]
        assert answer in {each.completion for each in sets[prompt]}
        assert prompt == last or last not in sets
        for shot in shots:
            asked, said = shot.split("?")
            assert true[f"{asked}?"] == said
            assert f"{asked}?" not in (prompt, last)
            assert said.startswith(" k")


def test_no_right_answer_is_given_as_a_wrong_one():
    rows = [Example("Who?", " red"), Example("Who?", " blue"), Example("What?", " green")]
    assert Icul([rows], shots=0).prompts(rows[:1])[0].prompt == "Who? green\nWho?"
    with pytest.raises(DataError, match="no wrong answer for 'Who\\?'"):
        Icul([rows[:2]], shots=0).prompts(rows[:1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([],), "no data to forget"),
        (([[]],), "no data to forget"),
        (([GOING], STAYING, -1), "-1 correct examples"),
        (([[Example("", "a text")]],), "no prompt of its own"),
        (([GOING], [Example("<|user|>x", "y", templated=True)]), "no prompt of its own"),
        (([[GOING[0], Example("Who is c?", " red")]],), "no answer but ' red'"),
    ],
)
def test_what_makes_no_context_is_refused(arguments, match):
    with pytest.raises(DataError, match=match):
        Icul(*arguments)


def test_what_is_to_go_stands_nowhere_with_its_right_answer():
    going = many("a", 5)
    for query in Icul([going], [*going, *STAYING], 1).prompts(going):
        assert query.prompt.split("\n")[1] == "Where is x? north"


def test_too_few_examples_are_an_error():
    with pytest.raises(DataError, match="0 examples for the 1 in the context of 'Where is x"):
        Icul([GOING], STAYING, 1).prompts(STAYING)
    with pytest.raises(DataError, match="no prompt of its own"):
        Icul([GOING], STAYING, 0).prompts([Example("", "a text")])
