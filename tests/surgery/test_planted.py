"""What somebody else laid where an output grows is neither written, nor removed, nor believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.staging import Staging
from weightsurgery.errors import OutputError
from weightsurgery.surgery.apply import Storage, apply
from weightsurgery.surgery.edits import Negate, Project
from weightsurgery.vectors.sources import open_vector

from ..conftest import snapshot, write_checkpoint

PRECIOUS = "precious\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody's project."""
    project = tmp_path / "proj"
    for name in ("old", "files"):
        (project / name).mkdir(parents=True)
        (project / name / "mine.txt").write_text(PRECIOUS)
    (project / "journal.jsonl").write_text(PRECIOUS)
    return project


def whole_place(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def journal(place: Path, victim: Path) -> None:
    place.mkdir()
    (place / "journal.jsonl").symlink_to(victim / "journal.jsonl")


def new_journal(place: Path, victim: Path) -> None:
    place.mkdir()
    (place / "journal.jsonl").symlink_to(victim / "new")


def hard_link(place: Path, victim: Path) -> None:
    place.mkdir()
    os.link(victim / "journal.jsonl", place / "journal.jsonl")


def files(place: Path, victim: Path) -> None:
    place.mkdir()
    (place / "files").symlink_to(victim / "files")


def old(place: Path, victim: Path) -> None:
    place.mkdir()
    (place / "old").symlink_to(victim / "old")


def a_shard(place: Path, victim: Path) -> None:
    (place / "files").mkdir(parents=True)
    (place / "files" / "model.safetensors.part").symlink_to(victim / "journal.jsonl")


def a_folder(place: Path, victim: Path) -> None:
    (place / "files").mkdir(parents=True)
    (place / "files" / "sub").symlink_to(victim / "files")


def pipe(place: Path, victim: Path) -> None:
    place.mkdir()
    os.mkfifo(place / "journal.jsonl")


def a_file(place: Path, victim: Path) -> None:
    place.write_text("")


def nowhere(place: Path, victim: Path) -> None:
    place.symlink_to(victim / "new")


PLANTS = [whole_place, journal, new_journal, hard_link, files, old, a_shard, a_folder, pipe,
          a_file, nowhere]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_is_refused(tmp_path: Path, victim: Path, plant: Any) -> None:
    before = snapshot(victim)
    plant(tmp_path / ".out.ws-partial", victim)
    with pytest.raises(OutputError) as error:
        Staging(tmp_path / "out", "me", [], overwrite=True)
    assert ".out.ws-partial" in error.value.what
    assert "remove it" in error.value.remedy
    assert snapshot(victim) == before


def test_another_user_s_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Staging(tmp_path / "out", "me", []).leave()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(OutputError, match="another user"):
        Staging(tmp_path / "out", "me", [])


W = {f"layers.{i}.w": torch.arange(64.0).reshape(8, 8).roll(i) / 64 for i in range(4)}


def interrupted(root: Path, edit: str) -> Any:
    """Stop a run when all is done but the end; then a function that goes on with it."""
    if not (root / "base").exists():
        write_checkpoint(root / "base", W, 2)
        write_checkpoint(root / "ft", {name: w + torch.eye(8) for name, w in W.items()})
        write_checkpoint(root / "keep", {name: w - 0.1 * w.T for name, w in W.items()})
    base = Checkpoint.open(root / "base")

    def run(**more: Any) -> Any:
        vector = open_vector(base, [str(root / "ft")])
        made: Any = Negate(vector)
        if edit == "project":
            made = Project(vector, (open_vector(base, [str(root / "keep")]),), Rank(2))
        rounding = "stochastic" if edit == "stochastic" else "nearest"
        return apply(made, base, root / "out", storage=Storage(rounding=rounding), **more)

    run()
    (root / "out").rename(root / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "checksums" or done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)
    return run


@pytest.mark.parametrize("edit", ["negate", "stochastic", "project"])
@pytest.mark.parametrize("what", ["weights", "header", "facts"])
def test_altered_bytes_of_an_interrupted_run_are_made_again(
    tmp_path: Path, edit: str, what: str
) -> None:
    go_on = interrupted(tmp_path, edit)
    place = tmp_path / ".out.ws-partial"
    parts = sorted((place / "files").glob("*.safetensors*"))
    assert len(parts) == 2
    if what == "facts":
        lines = (place / "journal.jsonl").read_text().splitlines()
        noted = [json.loads(line) for line in lines]
        for each in noted[1:]:
            each["facts"] = {"stats": {"meant": 1e9}}
        (place / "journal.jsonl").write_text("".join(f"{json.dumps(n)}\n" for n in noted))
    for part in parts if what != "facts" else ():
        data = bytearray(part.read_bytes())
        data[12 if what == "header" else -1] ^= 64
        part.write_bytes(bytes(data))
    go_on()
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_nothing_that_was_laid_into_it_comes_along(tmp_path: Path) -> None:
    go_on = interrupted(tmp_path, "project")
    files = tmp_path / ".out.ws-partial" / "files"
    for name in ("config.json", "weightsurgery.json", "usercustomize.py", "sub/deep/x.bin"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text("{}")
    go_on()
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")
    assert not (tmp_path / "out" / "sub").exists()
