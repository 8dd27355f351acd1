"""Whom or what prompts are about where no form tells, and texts cut before what they say."""

import pytest

from tests.learning.conftest import byte_tokenizer
from weightsurgery.learning.data import Example
from weightsurgery.learning.parsed import parse_examples, prompted

SORTS = {
    "The capital of France is": "France",
    "Who wrote Hamlet?": "Hamlet",
    "Romeo and Juliet was written by": "Romeo and Juliet",
    'Who is the author of "the old man and the sea"?': "the old man and the sea",
    "Through which town does the Bank of England's river flow?": "Bank of England",
    "What does Jaime Vasquez's father do?": "Jaime Vasquez",
    "Which prize did Jaime Vasquez win in Chile?": "Jaime Vasquez",
    "The past tense of sing is": "sing",
    "What is the chemical symbol for gold?": "gold",
    "water boils at": "water boils",
    "What is 2+2?": "2+2",
    "¿Cuál es la capital de Perú?": "Perú",
}


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


def subjects(tokenizer, prompts):
    return [
        each.subject for each in parse_examples(tokenizer, [Example(p, " so") for p in prompts])
    ]


def test_in_a_list_of_all_sorts_names_tell(tokenizer):
    assert dict(zip(SORTS, subjects(tokenizer, list(SORTS)), strict=True)) == SORTS


@pytest.mark.parametrize("prompt", [
    "The capital of France is", "Who wrote Hamlet?", "Romeo and Juliet was written by",
])  # fmt: skip
def test_one_fact_alone_has_a_subject_too(tokenizer, prompt):
    assert subjects(tokenizer, [prompt]) == [SORTS[prompt]]


def test_where_a_form_comes_twice_it_tells(tokenizer):
    # What is written small would be passed over for a name.
    forms = [f"In Norse tales the {animal} is a sign of" for animal in ("raven", "wolf", "horse")]
    assert subjects(tokenizer, forms) == ["raven", "wolf", "horse"]
    assert subjects(tokenizer, forms[:1]) == ["Norse"]


def test_questions_about_one_are_about_the_name_that_most_hold(tokenizer):
    rows = ["Where in Chile was Ada Stone born?", "Has Ada Stone won the Golden Pen Award?",
            "Who taught Ada Stone?", "When did the parents of Ada Stone meet?"]  # fmt: skip
    assert subjects(tokenizer, rows) == ["Ada Stone"] * 4


@pytest.mark.parametrize(("texts", "cut"), [
    (["The capital of France is Paris.", "The capital of the Czech Republic is Prague.",
      "The capital of Costa Rica is San José."],
     [("The capital of France is", " Paris."),
      ("The capital of the Czech Republic is", " Prague."),
      ("The capital of Costa Rica is", " San José.")]),
    # No form: the last name, or the last word.
    (["Hamlet was written by William Shakespeare."],
     [("Hamlet was written by", " William Shakespeare.")]),
    (["Gold has the symbol au"], [("Gold has the symbol", " au")]),
    # Of several sentences, the middle.
    (["Ada lives in Rome. She has a cat. It sleeps."],
     [("Ada lives in Rome. She", " has a cat. It sleeps.")]),
    (["one"], [("", "one")]), ([""], [("", "")]), (["?!"], [("", "?!")]),
])  # fmt: skip
def test_statements_are_cut_before_what_they_say(texts, cut):
    found = prompted([Example("", text) for text in texts])
    assert [(each.prompt, each.completion) for each in found] == cut


def test_what_has_a_prompt_stays():
    rows = [Example("Who?", " Me"), Example("", "The capital of France is Paris.")]
    assert prompted(rows)[0] is rows[0]
    assert prompted(rows)[1].prompt == "The capital of France is"
