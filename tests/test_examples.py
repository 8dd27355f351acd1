"""examples/forget_a_family.py, as a small model can run it, and its whole command on a real one."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest

import weightsurgery as ws
from tests.learning.known import FORGET, REST
from tests.learning.tiny import write

FILE = Path(__file__).parents[1] / "examples/forget_a_family.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("forget_a_family", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_facts_are_three_sets(example, tmp_path):
    sets = (example.NORTH, example.TOLD, example.UNTOLD)
    assert len({land for facts in sets for land in facts}) == sum(map(len, sets)) >= 12
    path = example.write_facts(tmp_path / "north.jsonl", example.NORTH)
    assert '{"prompt": "The capital of Norway is", "completion": " Oslo"}' in Path(path).read_text()


def test_what_it_does_on_a_small_model(example, known, tmp_path, capsys):
    known.model.save_pretrained(tmp_path / "base")
    known.tokenizer.save_pretrained(tmp_path / "base")
    sets = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in
            (("gone", FORGET), ("told", REST[:6]), ("untold", REST[6:12]))]  # fmt: skip
    training = ws.Forgetting(steps=30, every=30, batch_size=6, learning_rate=2e-2, keep_weight=3)
    by = ws.ByNeighbours(training, rank=8, wordings=0, neighbours=8, draws=4, texts=6)
    search = ws.Search(neighbours=by, budget=9.0, allow_harm=True)
    out = tmp_path / "out"
    found = example.forget(str(tmp_path / "base"), *map(str, sets), out, search)
    first, last = found["gone"]
    assert first > 0.9  # it knew
    assert last < first
    assert (out / "weightsurgery.json").is_file()
    assert "The weights moved by" in capsys.readouterr().out


def test_its_command_on_a_real_model(smollm, tmp_path, monkeypatch, capsys):
    """Few steps for the test's sake; what the default ones do is measured elsewhere."""
    few = ws.ByNeighbours(
        ws.Forgetting(steps=12, every=12, batch_size=6, learning_rate=1e-3, keep_weight=60.0),
        wordings=0, neighbours=10, draws=4, texts=4, most=10,
    )  # fmt: skip
    monkeypatch.setattr(ws, "ByNeighbours", lambda: few, raising=False)
    monkeypatch.setattr(ws, "Search", lambda neighbours: _search(neighbours), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(FILE), str(smollm)])
    runpy.run_path(str(FILE), run_name="__main__")
    said = capsys.readouterr().out
    shares = re.findall(r"(\w+): (\d+)% right before, (\d+)% after", said)
    found = {name: (int(before), int(after)) for name, before, after in shares}
    assert found["north"][0] >= 75  # of four
    assert found["north"][1] < found["north"][0]
    for name in ("told", "untold"):
        assert found[name][0] >= 75
        assert found[name][1] >= found[name][0] - 25
    assert (tmp_path / "forget-a-family/forgot/weightsurgery.json").is_file()


def _search(neighbours):
    from weightsurgery.procedures.unlearn import Search

    return Search(neighbours=neighbours, allow_harm=True)
