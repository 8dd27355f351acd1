"""What a vector that was trained is known by: the same of all commands."""

import pytest

from tests.learning.tiny import FACTS, save, tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.learning.method import Method
from weightsurgery.learning.models import TOKENIZER_FILES
from weightsurgery.learning.outcome import Request as Identification
from weightsurgery.learning.settings import Training
from weightsurgery.procedures.request import Request, Search, Sources
from weightsurgery.procedures.system_request import How, SystemRequest

LINEAR = Selection("all-linear")


def of_identify(base, data):
    request = Identification.read(base, data, (), None, Training(), Method(), LINEAR, "cpu")
    return request.inputs, request.identity


def of_project(base, data):
    request = Request.read(base, Sources((data,)), Search(), LINEAR, "cpu", False)
    return request.inputs, request.digest


def of_unlearn(base, data):
    request = SystemRequest.read(base, (data,), (), (), How("npo"), None, "cpu")
    return request.inputs, request.digest


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
            inputs, identity = of(base, data)
        there = {path.name for path in (tmp_path / "base").iterdir()}
        assert there & set(TOKENIZER_FILES) <= set(inputs["base"]["files"])
        found.append((inputs["base"]["files"].get(name), identity))
    assert len({digest for digest, _ in found}) == len({each for _, each in found}) == 3
