"""What a vector that was trained is known by: the same of all commands."""

import pytest

from tests.learning.tiny import FACTS, save, tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.learning.method import IdentifyMode
from weightsurgery.learning.models import TOKENIZER_FILES
from weightsurgery.learning.settings import Training
from weightsurgery.procedures import unlearn
from weightsurgery.unlearning.methods import identify

LINEAR = Selection("all-linear")


def of_identify(base, data):
    return identify.read_job(base, data, (), None, Training(), IdentifyMode(), LINEAR, "cpu")


def of_project(base, data):
    return unlearn.read_job(base, unlearn.Sources((data,)), unlearn.Search(), device="cpu")


def of_unlearn(base, data):
    how = unlearn.MethodSettings("npo")
    return unlearn.read_job(base, unlearn.Sources((data,)), how, device="cpu")


@pytest.mark.parametrize("of", [of_identify, of_project, of_unlearn])
@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "merges.txt"])
def test_any_file_of_the_tokenizer_makes_another_vector(of, name, tmp_path):
    save(tiny("llama"), tmp_path / "base")
    data = str(write(tmp_path / "data.jsonl", FACTS))
    found = []
    for text in (None, "{}", "{ }"):
        if text is not None:
            (tmp_path / "base" / name).write_text(text)
        with Checkpoint.open(tmp_path / "base") as base:
            job = of(base, data)
            inputs, digest = job.inputs, job.digest
        there = {path.name for path in (tmp_path / "base").iterdir()}
        assert there & set(TOKENIZER_FILES) <= set(inputs["base"]["files"])
        found.append((inputs["base"]["files"].get(name), digest))
    assert len({one for one, _ in found}) == len({each for _, each in found}) == 3
