"""Killed runs: nothing half-made under the output's name, and the same bytes after a rerun."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import left_behind, write_checkpoint
from weightsurgery import Negate, apply, open_vector, verify
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import OutputError

# Imports once, then forks an edit per line of input: ten kills, one start of the interpreter.
SERVER = """
import json, os, pathlib, signal, sys
import torch
from weightsurgery import Checkpoint, Negate, apply, open_vector
from weightsurgery.checkpoint.writer import CheckpointWriter

torch.set_num_threads(1)
CheckpointWriter.FLUSH_SECONDS = 0.01

def edit(base, finetuned, out, scale, overwrite, at_rename, stop_at_first):
    renames = 0
    rename = pathlib.Path.rename
    def counted(self, target):
        nonlocal renames
        renames += 1
        if renames == at_rename:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)
    if at_rename:
        pathlib.Path.rename = counted
    def progress(*step):
        nonlocal stop_at_first
        if stop_at_first:
            stop_at_first = False
            os.kill(os.getpid(), signal.SIGSTOP)
    opened = Checkpoint.open(base)
    vector = open_vector(opened, [finetuned])
    apply(Negate(vector, scale), opened, out, overwrite=overwrite, progress=progress)

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            edit(**json.loads(line))
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    print(pid, flush=True)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        print("stopped", flush=True)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

SHARDS = 3


class Runs:
    """Edits in processes of their own, on a checkpoint of 36 MB."""

    def __init__(self, root: Path) -> None:
        self.root = root
        generator = torch.Generator().manual_seed(0)
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(9)]
        weights = {n: torch.randn(2000, 1000, generator=generator).bfloat16() for n in names}
        self.base = write_checkpoint(root / "base", weights, SHARDS, {"a": 1})
        tuned = {n: (t.float() * 1.125).bfloat16() for n, t in weights.items()}
        self.finetuned = write_checkpoint(root / "ft", tuned, 2)
        command = [sys.executable, "-c", SERVER]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self.said() == "ready"

    def said(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def start(self, out: Path, **settings: Any) -> int:
        request = {
            "base": str(self.base),
            "finetuned": str(self.finetuned),
            "out": str(out),
            "scale": 1.0,
            "overwrite": False,
            "at_rename": 0,
            "stop_at_first": False,
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({**request, **settings}) + "\n")
        return int(self.said())

    def here(self, out: Path, scale: float = 1.0, overwrite: bool = False) -> Any:
        """The same edit in this process."""
        base = Checkpoint.open(self.base)
        vector = open_vector(base, [str(self.finetuned)])
        return apply(Negate(vector, scale), base, out, overwrite=overwrite)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    found = Runs(tmp_path_factory.mktemp("kill"))
    yield found
    assert found.server.stdin is not None
    found.server.stdin.close()
    found.server.wait(30)


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[dict[str, str], dict[str, str], float]:
    """Digests of uninterrupted outputs at scales 1 and 2, and how long one took."""
    begin = time.monotonic()
    runs.start(runs.root / "whole")
    assert runs.said() == "0"
    took = time.monotonic() - begin
    runs.here(runs.root / "double", scale=2.0)
    first, second = digests(runs.root / "whole"), digests(runs.root / "double")
    assert len(first) == SHARDS + 3  # index, config, record
    assert all(first[name] != second[name] for name in first if "of" in name)
    return first, second, took


def moments(took: float) -> list[float]:
    rng = random.Random(2024)
    return [rng.uniform(0, took) for _ in range(10)]


def killed(runs: Runs, out: Path, after: float, **settings: Any) -> int:
    pid = runs.start(out, **settings)
    time.sleep(after)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return int(runs.said())


def test_killed_at_random_moments_then_rerun(runs: Runs, whole: Any, tmp_path: Path) -> None:
    wanted, _, took = whole
    codes = []
    for number, moment in enumerate(moments(took)):
        out = tmp_path / f"out{number}"
        codes.append(killed(runs, out, moment))
        if out.exists():
            assert digests(out) == wanted
        if left_behind(out) != [out.name]:
            runs.here(out)
        assert digests(out) == wanted
        assert left_behind(out) == [out.name]
    assert -signal.SIGKILL in codes  # some at least fell within the run


def test_killed_while_replacing_an_output(runs: Runs, whole: Any, tmp_path: Path) -> None:
    wanted, old, took = whole
    out = tmp_path / "out"
    codes = []
    for moment in moments(took):
        runs.here(out, scale=2.0, overwrite=out.exists())
        assert digests(out) == old
        codes.append(killed(runs, out, moment, overwrite=True))
        assert not out.exists() or digests(out) in (old, wanted)
        runs.here(out, overwrite=True)
        assert digests(out) == wanted
        assert left_behind(out) == ["out"]
    assert -signal.SIGKILL in codes


# Every shard gets its name, then the output: each of these renames is a moment to die at.
LAST = SHARDS + 1


@pytest.mark.parametrize("at", range(1, LAST + 1))
def test_killed_before_each_rename(runs: Runs, whole: Any, tmp_path: Path, at: int) -> None:
    wanted, *_ = whole
    out = tmp_path / "out"
    runs.start(out, at_rename=at)
    assert runs.said() == str(-signal.SIGKILL)
    assert left_behind(out) == [".out.ws-partial"]  # all of the work, and not under its name
    done = runs.here(out)
    assert done.resumed == 0  # added again: as fast as reading it back, and nothing is trusted
    assert digests(out) == wanted
    assert left_behind(out) == ["out"]


@pytest.mark.parametrize("at", range(1, LAST + 2))
def test_killed_before_each_rename_of_a_replacement(
    runs: Runs, whole: Any, tmp_path: Path, at: int
) -> None:
    wanted, old, _ = whole
    out = tmp_path / "out"
    runs.here(out, scale=2.0)
    runs.start(out, at_rename=at, overwrite=True)
    assert runs.said() == str(-signal.SIGKILL)
    if at <= LAST:
        assert digests(out) == old
    else:  # between moving the old output away and the new one in
        assert not out.exists()
    runs.here(out, overwrite=True)
    assert digests(out) == wanted
    assert left_behind(out) == ["out"]
    verify(out)


def test_the_old_output_comes_back_for_another_command(
    runs: Runs, whole: Any, tmp_path: Path
) -> None:
    _, old, _ = whole
    out = tmp_path / "out"
    runs.here(out, scale=2.0)
    runs.start(out, at_rename=LAST + 1, overwrite=True)
    assert runs.said() == str(-signal.SIGKILL)
    assert not out.exists()
    with pytest.raises(OutputError, match="exists"):
        runs.here(out, scale=0.5)
    assert digests(out) == old


def test_a_second_writer_of_the_same_output_is_refused(
    runs: Runs, whole: Any, tmp_path: Path
) -> None:
    wanted, *_ = whole
    out = tmp_path / "out"
    pid = runs.start(out, stop_at_first=True)
    assert runs.said() == "stopped"
    with pytest.raises(OutputError, match="another ws process is writing it"):
        runs.here(out)
    assert left_behind(out) == [".out.ws-partial"]
    os.kill(pid, signal.SIGCONT)
    assert runs.said() == "0"
    assert digests(out) == wanted
    with pytest.raises(OutputError, match="exists"):
        runs.here(out)
