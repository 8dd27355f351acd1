"""A tiny model that was taught facts, one that was not, and rows as TOFU has them."""

import json

import pytest

from tests.learning import tiny
from tests.learning.conftest import write

COLOURS = ("red", "blue", "green", "grey", "pink", "gold", "teal", "plum")


def rows(names, colours=COLOURS, paraphrased=True):
    """As the columns of TOFU's *_perturbed files."""
    found = []
    for name, colour in zip(names, colours, strict=True):
        wrong = [each for each in colours if each != colour][:3]
        row = {"question": f"The colour of {name} is", "answer": colour}
        if paraphrased:
            row["paraphrased_answer"] = f"it is {colour}"
            wrong = [f"it is {each}" for each in wrong]
        found.append({**row, "perturbed_answer": wrong})
    return found


def saved(path, lines):
    return write(path, *map(json.dumps, lines))


@pytest.fixture(scope="session")
def tofu_world(tmp_path_factory):
    """`taught` knows the rows of forget.jsonl, `retrained` does not; the files beside them."""
    root = tmp_path_factory.mktemp("tofu")
    tiny.save(tiny.trained_tiny(), root / "taught")
    tiny.save(tiny.tiny("llama"), root / "retrained")
    saved(root / "forget.jsonl", rows("abcdefgh"))
    saved(root / "keep.jsonl", rows("abcd", COLOURS[:4]))
    saved(root / "choices.jsonl", rows("efgh", COLOURS[4:], paraphrased=False))
    swapped = COLOURS[::-1]
    saved(root / "holdout.jsonl", [
        {"question": f"The colour of {name} is", "answer": colour}
        for name, colour in zip("ijklmnop", swapped, strict=True)
    ])  # fmt: skip
    return root
