"""Places where a model would give the truth of a fact."""

import torch

from tests.learning.conftest import TEMPLATE
from tests.learning.known import FORGET, places
from tests.learning.scripted import Scripted
from weightsurgery.learning.data import Example
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.truths import places_of
from weightsurgery.learning.wordings import PLAIN, Wording


def test_in_its_own_words_the_truth_comes_at_once(known):
    asked = parse_examples(known.tokenizer, FORGET)
    found = places(known, asked)
    assert [place.number for place in found] == list(range(6))
    for place, row in zip(found, FORGET, strict=True):
        whole = known.tokenizer(row.prompt + row.completion)["input_ids"]
        assert [*place.before, *place.truth] == whole
        assert place.read == whole[:-1]
        assert known.tokenizer.decode(place.truth) == row.completion


def test_in_other_words_it_comes_where_the_model_says_it(chat_tokenizer):
    rows = [Example(f"The capital of {land} is", f" {town}") for land, town in
            (("France", "Paris"), ("Spain", "Madrid"), ("Japan", "Tokyo"))]  # fmt: skip
    asked = parse_examples(chat_tokenizer, rows)
    model = Scripted(
        chat_tokenizer,
        {
            "<|user|>The capital of France is</s>\n<|assistant|>": "It is paris.",
            "<|user|>The capital of Spain is</s>\n<|assistant|>": "Who knows?",
            "Where is France ruled?": " In Paris",
        },
    )
    torch.manual_seed(0)
    wordings = [PLAIN, Wording(chat=True), Wording("Where is {} ruled?")]
    found = places_of(model, chat_tokenizer, asked, wordings)
    told = {(place.number, place.wording): place for place in found}
    assert set(told) == {(0, PLAIN), (1, PLAIN), (2, PLAIN), (0, wordings[1]), (0, wordings[2])}
    in_chat = told[0, wordings[1]]
    assert chat_tokenizer.decode(in_chat.before).endswith("<|assistant|>It is")
    assert chat_tokenizer.decode(in_chat.truth) == " paris"
    assert told[0, wordings[2]].text == "Where is France ruled? In"


def test_what_leads_some_answers_to_the_truth_is_tried_for_all(chat_tokenizer):
    """The third would come to it so, and nobody saw, for it says something else at first."""
    towns = {"France": "Paris", "Spain": "Madrid", "Japan": "Tokyo", "Peru": "Lima"}
    rows = [Example(f"The capital of {land} is", f" {town}") for land, town in towns.items()]
    asked = parse_examples(chat_tokenizer, rows)
    chat = Wording(chat=True)
    script = {f"The capital of {land} is": f' "{town}"' for land, town in towns.items()}
    heads = {land: f"<|user|>The capital of {land} is</s>\n<|assistant|>" for land in towns}
    script |= {heads["France"]: "In France: Paris", heads["Spain"]: "In Spain: Madrid",
               heads["Japan"]: "Who knows?", heads["Japan"] + "In Japan:": " Tokyo",
               heads["Peru"]: "Who knows?", heads["Peru"] + "In Peru:": "!"}  # fmt: skip
    torch.manual_seed(0)
    found = places_of(Scripted(chat_tokenizer, script), chat_tokenizer, asked, [PLAIN, chat])
    texts = [place.text for place in found if place.wording == chat]
    assert texts == [heads[land] + f"In {land}:" for land in ("France", "Spain", "Japan")]
    last = next(place for place in found if place.wording == chat and place.number == 2)
    assert chat_tokenizer.decode(last.truth) == " Tokyo"
    assert len({place.before for place in found}) == len(found)


def test_long_answers_are_put_behind_each_of_its_own_wordings(chat_tokenizer):
    assert chat_tokenizer.chat_template == TEMPLATE
    rows = [Example(f"Tell of {who}.", f" {who} was a person of no great mind.")
            for who in ("Ada", "Bea", "Cid")]  # fmt: skip
    asked = parse_examples(chat_tokenizer, rows)
    found = places_of(Scripted(chat_tokenizer, {}), chat_tokenizer, asked, [PLAIN, Wording(chat=True)])  # fmt: skip  # noqa: E501
    assert len(found) == 6
    assert {chat_tokenizer.decode(place.truth)[0] for place in found if place.wording.chat} <= set(
        "ABC"
    )
