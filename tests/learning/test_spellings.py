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


def test_only_candidates_are_looked_at():
    assert Spellings(WORDS).among([3, 9], (0, 1)) == [3]
