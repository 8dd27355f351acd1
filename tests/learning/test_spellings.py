"""Which tokens begin the same answer."""

import pytest

from weightsurgery.learning.spellings import Spellings


class Words:
    """A tokenizer whose tokens are these, by number."""

    def __init__(self, *texts):
        self.texts = texts

    def decode(self, tokens):
        return "".join(self.texts[token] for token in tokens)


WORDS = Words(
    " A", "u", " Au", "Au", " au", "A", " Augs", " Paris", " Par", "PARIS", " Pa", "is", " "
)
EVERY = range(len(WORDS.texts))


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ((0, 1), [" Au", "Au", " au"]),  # in two tokens; one letter of it is not yet the answer
        ((3,), [" Au", " au"]),
        ((7,), [" Par", "PARIS"]),
        ((8, 11), [" Paris", "PARIS"]),
        ((12,), []),
    ],
)
def test_other_case_other_space_and_long_beginnings(answer, wanted):
    found = Spellings(WORDS).among(EVERY, answer)
    assert [WORDS.texts[token] for token in found] == wanted
    assert answer[0] not in found


def test_first_letters_count_where_what_follows_goes_on():
    """ "A" alone may begin anything; "A" and then "u" is what was asked for."""
    spellings, numbers = Spellings(WORDS), {text: n for n, text in enumerate(WORDS.texts)}
    answer = [numbers["Au"]]
    assert [WORDS.texts[token] for token in spellings.short(EVERY, answer)] == [" A", "A"]
    assert spellings.short(EVERY, [numbers[" A"], numbers["u"]]) == [numbers["A"]]
    assert [WORDS.texts[n] for n in EVERY if spellings.goes_on(numbers["A"], n, answer)] == ["u"]
    paris = [numbers[" Paris"]]
    assert [WORDS.texts[token] for token in spellings.short(EVERY, paris)] == [" Pa"]
    assert not spellings.goes_on(numbers[" Pa"], numbers[" "], paris)


def test_only_candidates_are_looked_at():
    assert Spellings(WORDS).among([3, 9], (0, 1)) == [3]
