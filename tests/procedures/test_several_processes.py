"""What one process does alone is refused where several were launched."""

import pytest

from tests.conftest import left_behind
from tests.learning.tiny import FACTS, save, tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import EditError
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.procedures import unlearn
from weightsurgery.procedures.attack import attack_relearn


@pytest.mark.parametrize("several", [False, True])
def test_an_edit_from_data_is_for_one_process(several, tmp_path, monkeypatch):
    base = save(tiny("llama"), tmp_path / "base")
    sources = unlearn.Sources((str(write(tmp_path / "data.jsonl", FACTS)),))
    out = unlearn.Output(tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2" if several else "1")
    monkeypatch.setenv("RANK", "0")
    with Checkpoint.open(base) as opened:
        if not several:
            assert unlearn.plan(opened, sources, out, unlearn.Search(), device="cpu")
            return
        with pytest.raises(EditError, match="ws project from data sets in 2 processes"):
            unlearn.unlearn(opened, sources, tmp_path / "out", unlearn.Search(), device="cpu")
    assert left_behind(tmp_path / "out") == []


def test_a_search_by_neighbours_is_for_one_process(tmp_path, monkeypatch):
    base = save(tiny("llama"), tmp_path / "base")
    sources = unlearn.Sources((str(write(tmp_path / "data.jsonl", FACTS)),))
    out = unlearn.Output(tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with Checkpoint.open(base) as opened:
        planned = unlearn.plan(opened, sources, out, unlearn.Search(), device="cpu")
        assert [each.processes for each in planned.shared] == [2]
        how = unlearn.Search(neighbours=ByNeighbours())
        with pytest.raises(EditError, match="objective neighbours under FSDP"):
            unlearn.plan(opened, sources, out, how, device="cpu")


def test_an_attack_is_for_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EditError, match="ws attack relearn in 2 processes"):
        attack_relearn(tmp_path, [tmp_path / "data.jsonl"])
