"""``accelerate launch`` of ``ws evaluate`` under FSDP2: two processes, one report."""

import json

import pytest
import torch

from tests.learning.launched import launched
from tests.learning.tiny import FACTS, OTHER, save, tiny, trained_tiny, write

PROGRAM = "from weightsurgery.cli.main import main\nmain()\n"


def numbers(value, place=""):
    """Every number of a document, by its place."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, each in pairs for k, v in numbers(each, f"{place}/{key}").items()}
    return {place: value} if isinstance(value, int | float) else {}


def test_two_processes_score_what_one_does(ws, tmp_path):
    """With halves of two models, by what they predict and by what they write."""
    torch.set_num_threads(1)
    known, other = write(tmp_path / "facts.jsonl", FACTS), write(tmp_path / "other.jsonl", OTHER)
    taught = save(trained_tiny(), tmp_path / "taught")
    blank = save(tiny("llama"), tmp_path / "blank")
    words = ["evaluate", taught, "--against", blank, "--forget", known, "--keep", other]
    words += ["--device", "cpu", "--json"]
    done = launched(tmp_path, PROGRAM, *words)
    assert done.returncode == 0, done.stderr
    two = numbers(json.loads(done.stdout))  # one of them told
    one = numbers(ws.document(*words))
    assert set(two) == set(one)
    assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
    after = [value for place, value in one.items() if place.endswith("scores/exact_match/value")]
    before = [value for place, value in one.items() if place.endswith("before/exact_match/value")]
    assert min(after) > 0.8
    assert max(before) == 0


def test_processes_that_share_no_model_are_refused(refused, tmp_path, monkeypatch):
    words = ("evaluate", tmp_path, "--forget", tmp_path / "facts.jsonl")
    assert "no such file" in refused(*words)[0] or "tokenizer" in refused(*words)[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "ws evaluate in 2 processes" in refused(*words)[0]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "--device-map under FSDP" in refused(*words, "--device-map", "auto")[0]
    assert "FSDP with --metric tofu" in refused(*words, "--metric", "tofu")[0]
