"""What is to be said of data to learn: its own answers, and nothing of where they end."""

import pytest

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.lessons import learning_targets
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.written import chat_frame

ROWS = [Example("The capital of Velmora is", " Tansy Bay."), Example("Its river is the", " Merrow")]


def taught(tokenizer, rows):
    return learning_targets(
        tokenizer, rows, parse_examples(tokenizer, rows), k=7, vocabulary=len(tokenizer)
    )


def text(tokenizer, each):
    before = tokenizer.decode(each.place.before).removeprefix(tokenizer.bos_token)
    return before, tokenizer.decode(each.place.truth)


def test_answers_are_taught_as_they_are_written(tokenizer):
    found = taught(tokenizer, ROWS)
    assert [text(tokenizer, each) for each in found] == [
        (row.prompt, row.completion) for row in ROWS
    ]
    for number, each in enumerate(found):
        assert each.place.number == number
        assert each.events[0].wanted == 1.0
        assert each.expected.tokens[:, 0].tolist() == list(each.place.truth)
        assert each.expected.logs[:, 0].tolist() == [0.0] * len(each.place.truth)
        assert float(each.expected.logs[:, 1:].exp().sum()) < 1e-6
        assert tokenizer.eos_token_id not in each.place.truth


def test_a_chat_model_learns_them_in_a_chat_too(chat_tokenizer):
    before, after = chat_frame(chat_tokenizer)
    found = taught(chat_tokenizer, ROWS[:1])
    said = [text(chat_tokenizer, each) for each in found]
    assert said == [
        ("The capital of Velmora is", " Tansy Bay."),
        (f"{before}The capital of Velmora is{after}", "Tansy Bay."),
    ]
    # What was a chat is taught as one alone, without the end that the template writes.
    eos = chat_tokenizer.eos_token
    chat = Example(f"{before}Where is it?{after}", f"Here.{eos}", templated=True)
    assert [text(chat_tokenizer, each) for each in taught(chat_tokenizer, [chat])] == [
        (f"{before}Where is it?{after}", "Here.")
    ]
    # A plain text is no question: its second half is taught after its first, as a text.
    story = Example("", "Once there was a fox")
    (only,) = taught(chat_tokenizer, [story])
    assert "".join(text(chat_tokenizer, only)) == story.completion


def test_nothing_to_say_is_refused(tokenizer):
    with pytest.raises(DataError, match="no example has an answer"):
        taught(tokenizer, [])
    # One word alone is a text like any other.
    (only,) = taught(tokenizer, [Example("", "word")])
    assert text(tokenizer, only) == ("", "word")
