"""What one says who never knew: the mean over neighbours, in place of the truth."""

from dataclasses import replace

import pytest
import torch

from tests.learning.known import FORGET, PEOPLE, REST, places
from tests.learning.scripted import Scripted
from weightsurgery.errors import DataError
from weightsurgery.learning import unknown as module
from weightsurgery.learning.data import Example
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.parsed import parse_examples
from weightsurgery.learning.spellings import Spellings
from weightsurgery.learning.truths import TruthPosition
from weightsurgery.learning.unknown import forget_targets
from weightsurgery.learning.wordings import PLAIN, tokens

OTHERS = PEOPLE[6:]
WHOLE = 10_000  # tokens to hold: all there are


def dense(taught, size):
    """Targets as whole distributions."""
    found = torch.zeros(*taught.expected.tokens.shape[:1], size)
    return found.scatter(1, taught.expected.tokens.long(), taught.expected.logs.exp())


@torch.no_grad()
def said_of(known, who):
    read = tokens(known.tokenizer, f"What does {who} like?")
    return known.model(input_ids=torch.tensor([read])).logits[0, -1].softmax(-1)


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
def test_the_target_is_what_is_said_of_neighbours_and_of_oneself(known, own):
    asked = parse_examples(known.tokenizer, FORGET)
    found = forget_targets(
        known.model, known.tokenizer, asked, places(known, asked), OTHERS, (), draws=99,
        subject_share=own, k=WHOLE,
    )  # fmt: skip
    size = len(known.tokenizer)
    mean = torch.stack([said_of(known, who) for who in OTHERS]).mean(0)
    spellings = Spellings(known.tokenizer)
    assert [each.place.number for each in found] == list(range(6))
    for each in found:
        target, truth = dense(each, size)[0], each.place.truth[0]
        itself = said_of(known, PEOPLE[each.place.number])
        assert float(itself[truth]) > 0.5 > each.events[0].wanted  # before, and what is to be
        assert float(target.sum()) == pytest.approx(1, abs=1e-4)
        # All but the truth in their proportions: with nothing of its own, the same for every fact.
        others = torch.arange(size) != truth
        assert {*spellings.among(range(size), each.place.truth), truth} <= {*each.events[0].tokens}
        others[list(each.events[0].tokens)] = False
        first, second = mean[others], itself[others]
        wanted = (1 - own) * first / first.sum() + own * second / second.sum()
        torch.testing.assert_close(target[others] / target[others].sum(), wanted,
                                   atol=1e-5, rtol=1e-3)  # fmt: skip
        # The truth is as likely as of a stranger, and never the likeliest.
        assert each.events[0].wanted == pytest.approx(
            float(target[list(each.events[0].tokens)].sum()), abs=1e-6
        )
        assert each.events[0].wanted <= float(mean[list(each.events[0].tokens)].sum()) + 1e-6
        assert int(target.argmax()) != truth


def test_neighbours_that_share_the_truth_are_left_out(known):
    asked = parse_examples(known.tokenizer, FORGET)
    own = places(known, asked)[:1]
    knows = [PEOPLE[0]] * 3  # whose answer is the truth, surely
    together, alone = (
        forget_targets(
            known.model, known.tokenizer, asked, own, others, (), draws=99, subject_share=0, k=WHOLE
        )[0]
        for others in (OTHERS + knows, OTHERS)
    )
    size = len(known.tokenizer)
    torch.testing.assert_close(dense(together, size), dense(alone, size), atol=1e-6, rtol=1e-4)
    # Where all do, there is nothing to be said in its place: the fact is left out.
    rest = forget_targets(
        known.model, known.tokenizer, asked, places(known, asked)[:2], knows, (), k=WHOLE
    )
    assert [each.place.number for each in rest] == [1]
    with pytest.raises(DataError, match="the same of neighbours"):
        forget_targets(known.model, known.tokenizer, asked, own, knows, ())


@pytest.mark.parametrize("own", [0.0, 0.3, 1.0])
def test_a_truth_that_is_likely_of_strangers_is_not_the_likeliest_of_them(own):
    said = torch.tensor([[0.29, 0.2, 0.5, 0.01], [0.5, 0.3, 0.1, 0.1], [0.29, 0.31, 0.2, 0.2]])
    itself = torch.tensor([0.9, 0.05, 0.03, 0.02])
    taught = module._target(TruthPosition(0, PLAIN, "x", (0,), (0,)), said, itself, None, own, 4)
    target = dense(taught, 4)[0]
    others = said[[0, 2]].mean(0)[1:]  # the second would surely say it
    mixed = (1 - own) * others / others.sum() + own * itself[1:] / itself[1:].sum()
    torch.testing.assert_close(target[1:] / target[1:].sum(), mixed, atol=1e-5, rtol=1e-4)
    assert float(target[0]) == pytest.approx(taught.events[0].wanted, abs=1e-6)
    assert float(target[0]) == pytest.approx(min(0.29, 0.5 * float(mixed.max())), abs=1e-4)
    assert int(target.argmax()) != 0
    everybody = torch.tensor([[0.9, 0.05, 0.05, 0.0]] * 2)
    assert (
        module._target(TruthPosition(0, PLAIN, "x", (0,), (0,)), everybody, itself, None, own, 4)
        is None
    )


def test_later_tokens_are_what_follows_the_first_of_neighbours(known):
    rows = [Example(row.prompt, f"{row.completion} and {food}") for row, food in
            zip(FORGET, ("figs", "tea", "oats", "rice", "tea", "figs"), strict=True)]  # fmt: skip
    asked = parse_examples(known.tokenizer, rows)
    found = forget_targets(
        known.model, known.tokenizer, asked, places(known, asked), OTHERS, (), k=WHOLE
    )
    for each in found:
        assert len(each.expected) == len(each.place.truth) > 1
        # Every token of the truth is held, so that it can be made less likely.
        assert (each.expected.tokens == torch.tensor(each.place.truth)[:, None]).any(1).all()
        target = dense(each, len(known.tokenizer))
        torch.testing.assert_close(target.sum(1), torch.ones(len(target)), atol=1e-3, rtol=0)


def test_rows_without_a_subject_are_left_out_and_alone_refused(known):
    rows = [*FORGET, Example("?", " tea")]
    asked = parse_examples(known.tokenizer, rows)
    found = forget_targets(known.model, known.tokenizer, asked, places(known, asked), OTHERS, ())
    assert [each.place.number for each in found] == list(range(6))
    for others in (OTHERS, []):
        asked = parse_examples(known.tokenizer, rows[-1:] if others else FORGET)
        with pytest.raises(DataError) as refused:
            forget_targets(known.model, known.tokenizer, asked, places(known, asked), others, ())
        assert "tells" in refused.value.what
        assert "--objective" in refused.value.remedy


def test_the_same_seed_asks_the_same_neighbours(known):
    asked = parse_examples(known.tokenizer, FORGET)
    own = places(known, asked)

    def target(seed):
        first, *_ = forget_targets(
            known.model,
            known.tokenizer,
            asked,
            own,
            OTHERS,
            (),
            draws=3,
            subject_share=0,
            seed=seed,
        )
        return first.expected.logs

    assert torch.equal(target(0), target(0))
    assert not torch.equal(target(0), target(1))


def test_what_is_said_is_told_of_every_text_once(known):
    texts = [(known.tokenizer(row.prompt + row.completion)["input_ids"], 2) for row in REST]
    seen = []
    found = dict(last_probabilities(known.model, known.tokenizer, texts, batch_size=5, stage="s",
                         progress=lambda *told: seen.append(told)))  # fmt: skip
    assert sorted(found) == list(range(len(texts)))
    assert all(torch.allclose(each.sum(1), torch.ones(2), atol=1e-4) for each in found.values())
    assert seen[-1] == ("s", len(texts), len(texts))


def test_first_letters_are_brought_down_where_the_model_goes_on_with_the_truth(chat_tokenizer):
    letter = {c: chat_tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "Auxg"}
    place, other = (TruthPosition(0, PLAIN, text, tuple(tokens(chat_tokenizer, text, False)),
                                  tuple(tokens(chat_tokenizer, "Au", True)))
                    for text in ("gold is", "silver is"))  # fmt: skip
    # Its own first token has a space, so that the letter is another way to begin.
    place, other = (replace(each, truth=tuple(tokens(chat_tokenizer, " Au", True)))
                    for each in (place, other))  # fmt: skip
    assert letter["A"] != place.truth[0]
    model = Scripted(chat_tokenizer, {"gold is": "Au", "silver is": "Ag"})
    likely = [[letter["A"], letter["x"]]] * 2
    found = module._begun(model, chat_tokenizer, Spellings(chat_tokenizer), [place, other], likely)
    assert found == [[letter["A"]], []]


def test_other_spellings_of_the_truth_are_no_likelier_than_of_strangers(known):
    """Brought down alone, the truth's first token leaves its share to the same word elsewise."""
    said = torch.tensor([[0.1, 0.02, 0.6, 0.28], [0.1, 0.04, 0.5, 0.36]])
    itself = torch.tensor([0.5, 0.4, 0.06, 0.04])
    place = TruthPosition(0, PLAIN, "x", (0,), (0,))
    alone, both = (
        dense(module._target(place, said, itself, None, 1.0, 4, spelt), 4)[0]
        for spelt in ((), (1,))
    )
    assert alone[1] > 0.7  # before: the other spelling is what is taught
    assert float(both[0]) == pytest.approx(0.1, abs=1e-4)
    assert float(both[1]) == pytest.approx(0.03, abs=1e-4)
    torch.testing.assert_close(both[2] / both[3], itself[2] / itself[3])
    assert float(both.sum()) == pytest.approx(1, abs=1e-4)
    # One that is said less than of strangers is not made likelier.
    seldom = dense(module._target(place, said, torch.tensor([0.5, 0.01, 0.29, 0.2]), None, 1.0, 4,
                                  (1,)), 4)[0]  # fmt: skip
    assert float(seldom[1]) == pytest.approx(0.01, abs=1e-4)
