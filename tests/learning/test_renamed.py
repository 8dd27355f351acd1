"""A request's questions and answers about somebody else."""

from __future__ import annotations

import random

import pytest

from tests.learning.known import FORGET, places
from weightsurgery.learning import renamed as module
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.renamed import Renamed
from weightsurgery.learning.wordings import tokens


def test_names_are_capital_inside_sentences_and_numbers():
    texts = ["Where was Ada Stone born? In Old Fen, 1956. She left. The end, so to say"]
    assert module._named_words(texts) == {"Ada", "Stone", "Old", "Fen", "1956"}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_name_is_another_and_the_rest_as_far_as_is_asked(known, share):
    request = parse_examples(known.tokenizer, FORGET)
    others = 0
    renamed = Renamed(known.tokenizer, request, random.Random(0))
    for place in places(known, request):
        example = request[place.number]
        answer = known.tokenizer.decode(list(place.truth))
        read, count, back = renamed.read(example, place, answer, share)
        assert example.subject in place.text  # before
        text = known.tokenizer.decode(read, skip_special_tokens=True)
        assert example.subject not in text
        same = read[-count:] == tokens(known.tokenizer, answer, True)
        others += not same or "like?" not in text
        assert set(back.values()) <= {
            tokens(known.tokenizer, space + word, True)[0]
            for word in f"{example.prompt} {answer}".replace("?", "").split()
            for space in ("", " ")
        }
    assert others == 0 if share == 0 else others > len(request) // 2
