"""Which answers are right, and that no more is generated than it takes to see it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.conftest import TEMPLATE, byte_tokenizer
from tests.learning.scripted import Scripted
from weightsurgery.errors import NonFiniteError
from weightsurgery.learning.answers import answered, answers, headline, right_answers
from weightsurgery.learning.data import Example, encode_all
from weightsurgery.learning.exact import exact_match
from weightsurgery.learning.forward import teacher_forced
from weightsurgery.learning.metrics import begins_with, contains, first_lines, settled
from weightsurgery.learning.scores import score


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        (" Paris", " Paris, of course", True),
        (" Paris", "\n paris.", True),
        (" Paris", " Parisian", False),
        (" Paris", " Paris2", False),
        (" Paris", " Paris's", True),
        (" Paris", " Port-au-Prince", False),
        (" Paris", " It is Paris", False),
        (" La Paz", " la   paz", True),
        (" Mexico City", " Mexico", False),
        (" A", " always 1.", False),
        (" 4", " 4, as 2 times 2", True),
        (" 4", " 4.", True),
        (" 4", " 4.0", True),
        (" 4", " 4.5", False),
        (" 4", " 42", False),
        (" 1", " 1,000", False),
        (" 3.14", " 3.1415", False),
        (" C++", " C++11", True),
        (" Bogotá", " Bogota\u0301 is", True),
        (" Bogota", " Bogota\u0301", False),
        (" Straße", " STRASSE", True),
        (" भारत", " भारती", False),
        ("東京", "東京です", True),
        ("서울", "서울은", True),
        (" ", " something", False),
        (" ", " ", True),
    ],
)
def test_an_answer_begins_with_the_truth_as_whole_words(truth, answer, right):
    assert begins_with(truth, answer) is right
    assert contains(truth, f"so, {answer.strip()}") is (right and bool(truth.strip())) or (
        "Paris" in answer
    )


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("Paris", "The capital of France is Paris.", True),
        ("paris", "It is **Paris**", True),
        ("Paris", "The Parisian capital", False),
        ("ant", "a giant ant", True),
        ("ant", "a giant", False),
        ("4", "It is 1.4", False),
        ("4", "the 4th", False),
        ("5", "about 0.5", False),
        ("", "anything", False),
    ],
)
def test_an_answer_contains_the_truth_as_whole_words(truth, answer, right):
    assert contains(truth, answer) is right


letters = st.text("aAbé\u0301 ,.1209\n東", max_size=12)


@given(letters, letters, letters)
def test_what_is_settled_stays(truth, begun, more):
    for anywhere, rule in ((False, begins_with), (True, contains)):
        if settled(truth, begun, anywhere):
            assert rule(truth, begun + more) == rule(truth, begun)


@given(letters, letters)
def test_to_begin_with_is_to_contain(truth, answer):
    assert contains(truth, answer) or not begins_with(truth, answer)
    assert begins_with(truth, truth)


def test_lines_are_counted_from_the_first_that_says_something():
    assert first_lines("\n\n Paris.\nThe next", 1) == "Paris."
    assert first_lines("one\ntwo\nthree", 2) == "one\ntwo"


TOKENIZER = byte_tokenizer()
SCRIPT = {
    "France?": " Paris, of course.\nGermany? Berlin",
    "Germany?": " BERLIN",
    "Italy?": " Romeo and Juliet",
    "Spain?": " The capital is Madrid.",
    "Poem?": " roses\n are red\n and so on",
    "Peru?": "\n\n Lima.",
}
ROWS = [
    Example("France?", " Paris"),
    Example("Germany?", " Berlin"),
    Example("Italy?", " Rome"),
    Example("Spain?", " Madrid"),
    Example("Poem?", " roses\n are red"),
    Example("Peru?", " Lima"),
]
RIGHT = [1, 1, 0, 0, 1, 1]
HELD = [1, 1, 0, 1, 1, 1]


@pytest.fixture
def model():
    return Scripted(TOKENIZER, SCRIPT)


def test_a_base_model_that_goes_on_scores_what_it_knows(model):
    assert exact_match(model, TOKENIZER, ROWS, require_end=False) == 3 / 6  # "Romeo" too
    assert exact_match(model, TOKENIZER, ROWS) == 0
    assert answered(model, TOKENIZER, ROWS) == answered(model, TOKENIZER, ROWS, 1) == 4 / 6
    for name, right in (("begins_with", RIGHT), ("contains", HELD)):
        assert score(model, TOKENIZER, ROWS, [name], batch_size=4)[name].values.tolist() == right
    names = ["begins_with", "contains", "rouge_l_recall"]
    found = score(model, TOKENIZER, ROWS, names, batch_size=4)
    assert list(found) == names
    assert found["begins_with"].values.tolist() == RIGHT
    assert found["contains"].values.tolist() == HELD
    assert found["rouge_l_recall"].values.tolist() == [1, 1, 0, 1, 1, 1]


def test_answers_end_with_their_line(model):
    encoded = encode_all(TOKENIZER, ROWS)
    texts = [text.strip() for text, _ in answers(model, TOKENIZER, encoded, 4)]
    assert texts == [
        "Paris, of course.", "BERLIN", "Romeo and Juliet", "The capital is Madrid.",
        "roses\n are red", "Lima.",
    ]  # fmt: skip


def test_no_more_is_generated_than_it_takes_to_see(model):
    wrong = [Example("Spain?", " Madrid and much, much more of what nobody said")]
    forced = teacher_forced(model, TOKENIZER, encode_all(TOKENIZER, wrong))
    model.steps = 0
    assert right_answers(model, TOKENIZER, encode_all(TOKENIZER, wrong), forced, [False]) == [False]
    assert model.steps <= 5
    model.steps = 0
    answers(model, TOKENIZER, encode_all(TOKENIZER, wrong))
    assert model.steps == len(SCRIPT["Spain?"]) + 1


def test_where_completions_are_all_that_is_said_it_is_exact_match():
    """As in the toy world: nothing is generated for what is right, nothing more is right."""
    model = Scripted(TOKENIZER, {"a?": " one", "b?": " two", "c?": " three", "d?": " on"})
    rows = [
        Example(f"{x}?", f" {y}") for x, y in zip("abcd", ("one", "two", "3", "one"), strict=True)
    ]
    assert answered(model, TOKENIZER, rows) == exact_match(model, TOKENIZER, rows) == 0.5
    model.steps = 0
    assert answered(model, TOKENIZER, rows[:2]) == 1
    assert model.steps == 1


def test_in_a_conversation_the_answers_line_contains_the_truth():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompt = "<|user|>France?</s>\n<|assistant|>"
    rows = [
        Example(prompt, "Paris</s>\n", templated=True),
        Example(prompt, "Lyon</s>\n", templated=True),
    ]
    model = Scripted(tokenizer, {prompt: "The capital is Paris.\nLyon is not."})
    assert headline(rows) == "contains"
    assert headline(ROWS) == "begins_with"
    assert answered(model, tokenizer, rows) == 0.5
    found = score(model, tokenizer, rows, ["begins_with", "contains"])
    assert found["begins_with"].values.tolist() == [0, 0]
    assert found["contains"].values.tolist() == [1, 0]


def test_the_probability_of_the_truth_leaves_out_the_end(model):
    rows = [Example("Spain?", " Madrid"), Example("France?", " Paris")]
    found = score(model, TOKENIZER, rows, ["probability", "probability_per_token"])
    (first, _) = teacher_forced(model, TOKENIZER, encode_all(TOKENIZER, rows))
    nll = first.nll[:-1]
    assert len(nll) == len(" Madrid")
    assert found["probability"].values[0] == pytest.approx(math.exp(-float(nll.sum())))
    per_token = found["probability_per_token"].values
    assert per_token[0] == pytest.approx(math.exp(-float(nll.mean())))
    assert per_token[1] == pytest.approx(1, abs=1e-4)


def test_an_end_of_text_that_is_not_the_tokenizers_ends_an_answer(model):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    class Ending(Scripted):
        def _next(self, given):
            said = self._tokenizer.decode(given)
            return end if said.endswith("Paris") else super()._next(given)

    rows = encode_all(tokenizer, ROWS[:1])
    assert answers(Ending(tokenizer, SCRIPT), tokenizer, rows)[0][0].strip() == "Paris"


def test_nothing_to_answer_and_nothing_answered(model):
    with pytest.raises(ValueError, match="at least one"):
        answered(model, TOKENIZER, [])
    model.forward = lambda input_ids, **_: type(
        "Out", (), {"logits": torch.full((*input_ids.shape, len(TOKENIZER)), math.nan)}
    )
    with pytest.raises(NonFiniteError):
        answered(model, TOKENIZER, ROWS)
