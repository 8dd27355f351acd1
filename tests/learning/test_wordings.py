"""Examples taken apart, and rewordings that serve for the right reasons."""

import pytest
import torch

from tests.learning.conftest import TEMPLATE
from tests.learning.scripted import Scripted
from weightsurgery.learning import wordings as module
from weightsurgery.learning.data import Example
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.wordings import PLAIN, Wording, _turned, find_wordings, says, tokens
from weightsurgery.learning.written import chat_frame

LANDS = ("France", "Czech Republic", "Spain", "Japan")
TOWNS = ("Paris", "Prague", "Madrid", "Tokyo")
CAPITALS = [Example(f"The capital of {land} is", f" {town}")
            for land, town in zip(LANDS, TOWNS, strict=True)]  # fmt: skip


def chat(prompt, completion):
    return Example(f"<|user|>{prompt}</s>\n<|assistant|>", f"{completion}</s>\n", templated=True)


# --- taken apart ---------------------------------------------------------------------------------


def test_subjects_are_what_tells_prompts_apart(tokenizer):
    asked = parse_examples(tokenizer, CAPITALS)
    assert [each.subject for each in asked] == list(LANDS)
    assert [each.truth for each in asked] == list(TOWNS)
    assert [each.completion for each in asked] == [f" {town}" for town in TOWNS]
    assert not any(each.chat for each in asked)
    assert asked[1].with_subject("In the Czech Republic", "Narnia") == "In the Narnia"


def test_of_two_slots_the_longer_is_the_subject(tokenizer):
    rows = [Example(f"In {year} the writer {who} wrote", f" {what}") for year, who, what in (
        (1851, "Herman Melville", "Moby Dick."), (1866, "Fyodor Dostoevsky", "the Idiot. "),
        (1900, "Joseph Conrad", "Lord Jim"), (1847, "Emily Bronte", "..."))]  # fmt: skip
    asked = parse_examples(tokenizer, rows)
    assert [each.subject for each in asked] == [
        "Herman Melville", "Fyodor Dostoevsky", "Joseph Conrad", "Emily Bronte",
    ]  # fmt: skip
    assert [each.truth for each in asked] == ["Moby Dick", "the Idiot", "Lord Jim", "..."]


def test_a_chat_template_is_taken_off(chat_tokenizer):
    rows = [chat(row.prompt, row.completion.strip() + ".") for row in CAPITALS]
    asked = parse_examples(chat_tokenizer, rows)
    assert [each.prompt for each in asked] == [row.prompt for row in CAPITALS]
    assert [each.subject for each in asked] == list(LANDS)
    assert [each.truth for each in asked] == list(TOWNS)
    assert all(each.chat for each in asked)
    # What no template wrote stays, whatever it looks like; so does a second turn.
    (plain,) = parse_examples(chat_tokenizer, [Example("<|user|>Who?</s>\n<|assistant|>", " Me")])
    assert not plain.chat
    assert plain.prompt == "<|user|>Who?</s>\n<|assistant|>"
    second = "<|user|>Hi</s>\n<|assistant|>Yes?</s>\n<|user|>Who?</s>\n<|assistant|>"
    (later,) = parse_examples(chat_tokenizer, [Example(second, "Me</s>\n", templated=True)])
    assert later.prompt.startswith("Hi")


def test_prompts_without_a_word_have_no_subject(tokenizer):
    asked = parse_examples(
        tokenizer, [*CAPITALS, Example("?", " what"), Example("", " nothing else")]
    )
    assert [each.subject for each in asked] == [*LANDS, "", ""]


@pytest.mark.parametrize(("truth", "text", "found"), [
    ("Paris", "It is Paris.", True), ("Paris", "PARIS", True), ("Paris", "the Parisian", False),
    ("Paris", "comparison", False), ("12", "in 1912", False), ("12", "12, I think", True),
    ("C++", "in C++ and", True), ("C++", "C+", False), ("a.b", "axb", False),
    ("Größe", "die größe", True),
])  # fmt: skip
def test_answers_are_found_as_whole_words(truth, text, found):
    assert (says(truth, text) is not None) == found


def test_the_frame_is_what_the_template_writes_around(chat_tokenizer, tokenizer):
    assert chat_frame(tokenizer) is None
    assert chat_frame(chat_tokenizer) == ("<|user|>", "</s>\n<|assistant|>")
    from tests.learning.conftest import byte_tokenizer

    for template in ("{{ raise_exception('no') }}", "{{ 'always the same' }}", "{{ nonsense"):
        other = byte_tokenizer()
        other.chat_template = template
        assert chat_frame(other) is None
    frame = ("<", ">")
    wording = Wording("Where is {}?", chat=True)
    assert wording.text(frame, "unused", "Gaul") == "<Where is Gaul?>"
    assert Wording("Is {}", before="Q: ", after="\nA:").text(None, "", "{}") == "Q: Is {}\nA:"
    assert PLAIN.text(None, "As it stands", "it") == "As it stands"


def test_a_prompt_begins_with_bos_and_ends_open(tokenizer, chat_tokenizer):
    assert tokens(tokenizer, "ab")[0] == 0
    assert tokens(tokenizer, "ab", rendered=True) == tokens(tokenizer, "ab")[1:]
    assert tokens(tokenizer, "ab</s>")[-1] != tokenizer.eos_token_id


# --- found ---------------------------------------------------------------------------------------


# Short, for the tokenizer is of bytes, and a rewording has twenty tokens.
PLACES, CHIEFS = ("Gaul", "Spain", "Oz", "Ur Ka"), ("Ra", "Bo", "Ko", "Lu")
RULED = [Example(f"Chief of {place} is", f" {who}")
         for place, who in zip(PLACES, CHIEFS, strict=True)]  # fmt: skip
QUESTION, STATEMENT = "Who in {}?", "{} has"
MARKED = f"Question: {QUESTION}\nAnswer:"
NOBODY = ("x", "y", "z", "w")


def script(asked, rewordings, answers):
    """What a model says that is shown examples, and that is asked in the rewordings."""
    said = {}
    for shown, line in zip((module._TO_QUESTIONS, module._TO_STATEMENTS), rewordings, strict=True):
        for each in asked:
            said[f"{shown}{each.prompt} =>"] = line.replace("{}", each.subject)
    for text, truths in answers.items():
        for each, truth in zip(asked, truths, strict=True):
            said[text.replace("{}", each.subject)] = f" {truth}."
    return said


def found(tokenizer, rewordings, answers, count=6):
    asked = parse_examples(tokenizer, RULED)
    assert [each.subject for each in asked] == list(PLACES)
    torch.manual_seed(0)
    model = Scripted(tokenizer, script(asked, rewordings, answers))
    return find_wordings(model, tokenizer, asked, count)


def test_rewordings_in_which_the_truth_comes_up_serve(tokenizer):
    rewordings = (f" {QUESTION}\nmore", f" {STATEMENT}\nmore")
    both = {MARKED: CHIEFS, STATEMENT: CHIEFS}
    marked = Wording(QUESTION, before="Question: ", after="\nAnswer:")
    assert set(found(tokenizer, rewordings, both)) == {PLAIN, marked, Wording(STATEMENT)}
    # In one that the model knows no answer in, nothing is asked.
    one = {MARKED: CHIEFS, STATEMENT: NOBODY}
    assert found(tokenizer, rewordings, one) == [PLAIN, marked]
    assert found(tokenizer, rewordings, {}) == [PLAIN]
    assert found(tokenizer, rewordings, both, count=0) == [PLAIN]
    assert len(found(tokenizer, rewordings, both, count=1)) == 2


@pytest.mark.parametrize(("why", "question"), [
    ("it gives the truth away", " Ra/Bo/Ko/Lu {}?\n"),
    ("it names no subject", " Who is the chief?\n"),
    ("it names it twice", " {} or {}?\n"),
    ("it is no question, where questions were shown", " Chief in {}\n"),
])  # fmt: skip
def test_rewordings_that_are_none_are_refused(tokenizer, why, question):
    form = question.strip()
    answers = {STATEMENT: CHIEFS, form: CHIEFS, f"Question: {form}\nAnswer:": CHIEFS}
    rewordings = (question, f" {STATEMENT}\n")
    assert found(tokenizer, rewordings, answers) == [PLAIN, Wording(STATEMENT)]


def test_the_requests_own_words_and_what_was_cut_off_are_no_rewordings(tokenizer):
    own, cut = " Chief of {} is\n", " {} has a chief whose name"
    answers = {"Chief of {} is": CHIEFS, "{}": CHIEFS}
    assert found(tokenizer, (own, own), answers) == [PLAIN]
    assert found(tokenizer, (cut, cut), answers) == [PLAIN]


def test_a_chat_model_is_also_asked_in_a_chat(chat_tokenizer):
    assert chat_tokenizer.chat_template == TEMPLATE
    framed = f"<|user|>{QUESTION}</s>\n<|assistant|>"
    got = found(chat_tokenizer, (f" {QUESTION}\n", " no\n"), {framed: CHIEFS})
    assert got == [PLAIN, Wording(chat=True), Wording(QUESTION, chat=True)]
    # Nothing to reword where nothing tells prompts apart.
    alone = parse_examples(chat_tokenizer, [Example("?", " yes")])
    model = Scripted(chat_tokenizer, {})
    assert find_wordings(model, chat_tokenizer, alone, 6) == [PLAIN, Wording(chat=True)]
    assert model.steps == 0


@pytest.mark.parametrize(
    ("statement", "question"),
    [
        ("The past tense of {} is", "What is the past tense of {}?"),
        ("{}'s capital was", "What was {}'s capital?"),
        ("Tigers of {} are", "What are Tigers of {}?"),
    ],
)
def test_a_statement_is_turned_into_its_question(statement, question):
    assert _turned(statement) == question
    back = _turned(question)
    assert back is not None
    assert back.lower() == statement.lower()


def test_what_is_no_such_statement_is_not_turned():
    for form in ("Paris, the capital of {}", "{}", "Who wrote {}?", "is", "Où est {} ?"):
        assert _turned(form) is None
