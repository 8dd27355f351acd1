"""What a training reads is kept to the bit, and what is to stay gives no truth away."""

import random
from dataclasses import replace

import pytest
import torch

from tests.conftest import same_bytes
from tests.learning.known import FORGET, PEOPLE, REST
from weightsurgery.errors import OutputError
from weightsurgery.learning import material
from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.material import (
    KEPT,
    Material,
    Row,
    kept_texts,
    language_texts,
    neighbour_texts,
    read_material,
    rows_of,
    subject_texts,
    taught_rows,
    write_material,
)
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.strangers import halves
from weightsurgery.learning.truths import TruthPosition
from weightsurgery.learning.unknown import Target
from weightsurgery.learning.wordings import PLAIN, says


def row(length, places, held, number, seed):
    generator = torch.Generator().manual_seed(seed)
    said = torch.randn(places, 30, generator=generator).softmax(-1)
    return Row(tuple(range(seed, seed + length)), Expected.of(said, 5), held, number)


def rows_equal(one, other):
    return (one.tokens, one.held, one.number) == (other.tokens, other.held, other.number) and all(
        same_bytes(a, b)
        for a, b in ((one.expected.tokens, other.expected.tokens),
                     (one.expected.logs, other.expected.logs))
    )  # fmt: skip


def test_what_is_written_is_read_to_the_bit(tmp_path):
    forget = [row(5, 3, 1, 0, 1), row(9, 2, 0, 1, 2)]
    kept = {"neighbours": [row(4, 4, 4, -1, 3)], "keep": [], "language": [row(7, 2, 2, -1, 4)],
            "subjects": [row(3, 1, 1, -1, n) for n in range(5, 9)]}  # fmt: skip
    made = Material(
        forget,
        [[Event(0, (4,), 0.1)], [Event(0, (7, 2), 1 / 3), Event(1, (5,), 0.2, 0.4)]],
        kept,
        [row(6, 5, 5, -1, 9)],
        {"wordings": ["ein Größtes"]},
    )
    file = tmp_path / "deep/material.safetensors"
    write_material(made, file)
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    read = read_material(file)
    assert (read.events, read.notes) == (made.events, made.notes)
    assert set(read.kept) == set(KEPT)
    pairs = [(made.taught, read.taught), (made.guard, read.guard)]
    pairs += [(made.kept[kind], read.kept[kind]) for kind in KEPT]
    for wrote, found in pairs:
        assert len(wrote) == len(found)
        assert all(map(rows_equal, wrote, found))
    # Written again it is the same file, and a failure leaves the one that was there.
    before = file.read_bytes()
    write_material(read, file)
    assert file.read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_material(made, tmp_path / "file/material.safetensors")


def text_of(known, tokens):
    return known.tokenizer.decode(tokens, skip_special_tokens=True)


def test_rows_hold_what_the_model_says(known):
    texts = [(known.tokenizer(row.prompt)["input_ids"], 2) for row in REST[:5]]
    rows = rows_of(known.model, known.tokenizer, texts, 10, "")
    for (read, places), each in zip(texts, rows, strict=True):
        assert (list(each.tokens), each.held, each.number) == (read, places, -1)
        with torch.no_grad():
            said = known.model(input_ids=torch.tensor([read])).logits[0, -places:].softmax(-1)
        wanted, likeliest = said.topk(10)
        assert torch.equal(each.expected.tokens[:, 0].long(), likeliest[:, 0])
        torch.testing.assert_close(each.expected.logs.exp(), wanted, atol=1e-5, rtol=1e-3)


def test_neighbours_are_read_as_the_model_answers_them(known):
    asked = parse_examples(known.tokenizer, FORGET)
    one, *others = PEOPLE[6:12]
    found = neighbour_texts(
        known.model, known.tokenizer, asked, [one, *others], [PLAIN], 18, random.Random(0)
    )
    assert len(found) == 18
    answers = dict.fromkeys(PEOPLE[6:12])
    for tokens, places in found:
        who = next(each for each in answers if each in text_of(known, tokens))
        answers[who] = text_of(known, tokens[len(tokens) - places + 1 :]).strip()
    truth = dict(zip(PEOPLE[6:], (row.completion.strip() for row in REST), strict=True))
    assert all(says(truth[who], said) for who, said in answers.items())
    # One who is said to like what is to be forgotten is left out: here, the request's own.
    with_own = [one, PEOPLE[0], PEOPLE[1]]
    found = neighbour_texts(
        known.model, known.tokenizer, asked, with_own, [PLAIN], 9, random.Random(0)
    )
    assert {one in text_of(known, tokens) for tokens, _ in found} == {True}
    assert neighbour_texts(known.model, known.tokenizer, asked, [], [PLAIN], 9, random.Random(0)) == []  # fmt: skip  # noqa: E501


def test_texts_about_the_subjects_stop_before_the_truth(known):
    asked = parse_examples(known.tokenizer, FORGET)
    torch.manual_seed(0)
    found = subject_texts(known.model, known.tokenizer, asked, 30, random.Random(0))
    assert len(found) >= 10
    for tokens, places in found:
        text = text_of(known, tokens)
        (each,) = [each for each in asked if text.startswith(each.subject)]
        assert not says(each.truth, text)
        # Nothing counts before the subject is said.
        head = known.tokenizer(each.subject)["input_ids"]
        assert tokens[: len(head)] == head
        assert places == len(tokens) - len(head) + 1


def test_ordinary_texts_give_no_fact_to_forget(known):
    asked = parse_examples(known.tokenizer, FORGET)
    torch.manual_seed(0)
    everything = language_texts(known.model, known.tokenizer, [], 60)
    torch.manual_seed(0)
    found = language_texts(known.model, known.tokenizer, asked, 60)

    def gives(tokens):
        text = text_of(known, tokens)
        return any(each.subject in text and says(each.truth, text) for each in asked)

    assert any(gives(tokens) for tokens, _ in everything)
    assert found == [pair for pair in everything if not gives(pair[0])]
    assert len(found) > 5


def test_a_small_keep_set_is_not_lost_beside_a_large_one(known, monkeypatch):
    small, large = REST[:2], REST[2:]
    given = [row.prompt + row.completion for row in REST]

    told = []

    def read():
        """Which of the given texts are read: twice each, the model's own answers being the same."""
        texts, counts = kept_texts(known.model, known.tokenizer, [small, large])
        told.append(counts)
        found = [text_of(known, tokens) for tokens, _ in texts]
        return [found.count(text) for text in given]

    assert read() == [2] * len(given)
    monkeypatch.setattr(material, "_GIVEN", 3)
    monkeypatch.setattr(material, "_ANSWERED", 2)
    some = read()
    assert told[0]["read"] == told[0]["texts"] == len(given)
    assert told[0]["asked"] == told[0]["given"]
    assert (told[1]["texts"], told[1]["read"]) == (len(given), 2 + 3)
    assert (told[1]["given"], told[1]["asked"]) == (told[0]["given"], 2 + 2)
    assert some[:2] == [2, 2]
    # From all over the large one.
    assert sum(some[2:]) == 3 + 2
    half = len(some) // 2
    assert any(some[2:half])
    assert any(some[half:])


def test_what_is_given_to_keep_is_read_as_given_and_as_answered(known):
    texts, counts = kept_texts(known.model, known.tokenizer, [REST[:4]])
    assert counts == {"texts": 4, "read": 4, "given": 4, "asked": 4, "too_long": 0}
    read = [text_of(known, tokens) for tokens, _ in texts]
    for row in REST[:4]:
        assert read.count(row.prompt + row.completion) == 2
    # A plain text counts whole, but for its first token; a long one by its end.
    plain = [halves(REST)[0].completion * 3]
    from weightsurgery.learning.data import Example

    (found, *_), _ = kept_texts(known.model, known.tokenizer, [[Example("", plain[0])]])
    assert found[1] == len(found[0])
    # A prompt that is too long to be asked is counted, and its text held as it is given.
    long = replace(REST[0], prompt=REST[1].prompt * 30)
    asked = [[REST[0], long], [Example("", plain[0])]]
    texts, counts = kept_texts(known.model, known.tokenizer, asked, most=50)
    assert (counts["given"], counts["asked"], counts["too_long"]) == (2, 1, 1)
    assert counts["read"] == counts["texts"] >= 3
    longer = [Example("", " What does Ada like?" * 60)]
    assert len(kept_texts(known.model, known.tokenizer, [longer], most=50)[0][0][0]) == 50


def test_what_is_taught_at_one_place_is_not_held_on_the_way_to_another(known):
    """The text of a detour goes on from the prompt, where the truth is to be said no more."""
    place, after = (3, 4, 5, 6, 7, 8), (3, 4, 5, 6, 7, 8, 9)
    own = TruthPosition(0, PLAIN, "x", place, (11,))
    detour = TruthPosition(0, PLAIN, "x y", after, (11, 12))
    further = TruthPosition(0, PLAIN, "x y z", (*after, 10, 10), (11,))

    def held(*places):
        taught = [
            Target(
                each,
                Expected.sure(torch.tensor(each.truth), 5, 40),
                (Event(0, each.truth[:1], 0.0),),
            )
            for each in places
        ]
        return [row.held for row in taught_rows(known.model, known.tokenizer, taught, 5)]

    assert held(own) == [4]
    assert held(detour) == [4]  # alone: also the place after the prompt
    assert held(own, detour, further) == [4, 0, 1]
