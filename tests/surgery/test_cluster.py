"""Edits on a Ray cluster of two nodes, which tests may lose; all of this module share one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import left_behind, read_tensors, write_checkpoint
from tests.surgery.inputs import MATRICES, digests, edits, vector
from tests.surgery.nodes import two_nodes
from tests.surgery.unlucky import KilledOnce, StuckOn
from weightsurgery import Negate, Storage, apply
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import ClusterError, LostWorkError, NonFiniteError
from weightsurgery.surgery import cluster as by_ray
from weightsurgery.surgery import tasks

ray = pytest.importorskip("ray")

# A driver that is killed in the middle: as another process, so that its cluster outlives it.
DRIVER = """
import os, signal, sys
from pathlib import Path
from weightsurgery import Add, Checkpoint, Storage, apply, open_vector
from weightsurgery.checkpoint.writer import CheckpointWriter

CheckpointWriter.FLUSH_SECONDS = 0.01
root, out = Path(sys.argv[1]), Path(sys.argv[2])
journal = out.parent / f".{out.name}.ws-partial/journal.jsonl"

def progress(*_):
    while len(journal.read_text().splitlines()) < 2:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

base = Checkpoint.open(root / "base")
edit, storage = Add(open_vector(base, [str(root / "keep")])), Storage(rounding="stochastic")
apply(edit, base, out, storage=storage, cluster="ray", workers=1, progress=progress)
"""


# One that waits for a task that does not end.
STUCK = """
import sys
from pathlib import Path
from tests.surgery.nodes import SMALL, two_nodes
from tests.surgery.unlucky import StuckOn
from weightsurgery import Checkpoint, Storage, apply, open_vector
from weightsurgery.errors import LostWorkError

root, out, marker, node = sys.argv[1:]
base = Checkpoint.open(Path(root, "base"))
edit = StuckOn(open_vector(base, [str(Path(root, "tuned"))]), 0.7, marker, node)
try:
    apply(edit, base, out, storage=Storage(rounding="stochastic"), cluster="ray")
except LostWorkError as lost:
    print(f"OURS: {lost}", file=sys.stderr, flush=True)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, two_nodes() as cluster:
        patch.setattr(tasks, "RANGE", tasks.WINDOW)
        yield cluster


def until(happened: Callable[[], bool]) -> None:
    """Wait for it; a test says itself whether it came."""
    end = time.monotonic() + 120
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["stretches", "matrices", "blocks"])
def test_two_nodes_write_the_same_bytes(
    nodes: Any, inputs: Path, tmp_path: Path, wanted: Any, name: str
) -> None:
    base = Checkpoint.open(inputs / "base")
    edit, storage = edits(inputs, base)[name]
    steps: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        steps.append((done, total))

    out = tmp_path / "out"
    apply(edit, base, out, storage=storage, cluster="ray", progress=progress)
    assert digests(out) == wanted[name]
    assert left_behind(out) == ["out"]
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert ray.is_initialized()  # a connection of the caller's stays


def test_a_task_whose_process_dies_is_done_again(
    nodes: Any, inputs: Path, tmp_path: Path, wanted: Any
) -> None:
    base = Checkpoint.open(inputs / "base")
    marker = tmp_path / "marker"
    edit = KilledOnce(vector(inputs, base, "tuned"), 0.7, str(marker))
    storage = Storage(dtype="float32")
    plain = Negate(vector(inputs, base, "tuned"), 0.7)
    apply(plain, base, tmp_path / "plain", storage=storage)
    apply(edit, base, tmp_path / "out", storage=storage, cluster="ray")
    assert marker.exists()
    weights = {n for n in digests(tmp_path / "plain") if n.endswith(".safetensors")}
    found, expected = digests(tmp_path / "out"), digests(tmp_path / "plain")
    assert {n: found[n] for n in weights} == {n: expected[n] for n in weights}
    assert len(weights) == 2


def test_an_error_on_a_node_comes_back_as_itself(nodes: Any, inputs: Path, tmp_path: Path) -> None:
    tensors = read_tensors(inputs / "tuned")
    tensors[MATRICES[3]][5, 7] = torch.nan
    write_checkpoint(tmp_path / "tuned", tensors)
    base = Checkpoint.open(inputs / "base")
    said = []
    for cluster in (None, "ray"):
        edit = Negate(vector(tmp_path, base, "tuned"))
        with pytest.raises(NonFiniteError) as found:
            apply(edit, base, tmp_path / "out", cluster=cluster, allow_unrelated=True)
        said.append(str(found.value))
        assert type(found.value) is NonFiniteError
        assert left_behind(tmp_path / "out") == []
    assert said[0] == said[1]
    assert MATRICES[3] in said[0]
    assert len(said[0].splitlines()) == 2


def test_a_node_without_the_package_is_told(
    nodes: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours_alone.py").write_text("def perform(*_):\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)  # of this process, which is connected: not of nodes
    monkeypatch.setattr(
        "weightsurgery.surgery.cluster._perform", import_module("ours_alone").perform
    )
    base = Checkpoint.open(inputs / "base")
    with pytest.raises(ClusterError, match="No module named 'ours_alone'") as found:
        apply(Negate(vector(inputs, base, "tuned")), base, tmp_path / "out", cluster="ray")
    assert "Install weightsurgery[ray]" in found.value.remedy
    assert left_behind(tmp_path / "out") == []


def test_a_killed_driver_goes_on_where_it_was(
    nodes: Any, inputs: Path, tmp_path: Path, wanted: Any
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", DRIVER, str(inputs), str(out)]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=root, env=env, check=False, timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert left_behind(out) == [".out.ws-partial"]
    base = Checkpoint.open(inputs / "base")
    edit, storage = edits(inputs, base)["stochastic"]
    again = apply(edit, base, out, storage=storage, cluster="ray")
    assert 0 < again.resumed < len(MATRICES)
    assert digests(out) == wanted["stochastic"]


def test_a_head_that_does_not_answer_leaves_what_is_finished(
    nodes: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, out = tmp_path / "marker", tmp_path / "out"
    base = Checkpoint.open(inputs / "base")
    head = nodes.head_node.node_id
    edit = StuckOn(vector(inputs, base, "keep"), 1.0, str(marker), head)
    storage = Storage(rounding="stochastic")
    asked: list[str] = []
    end = Path(f"{marker}.end")

    def stuck() -> bool:
        return marker.exists() and not end.exists()

    def silent(place: str) -> str | None:
        asked.append(place)
        return "refused" if place == nodes.address and stuck() else None

    monkeypatch.setattr(by_ray, "_LOOK", 0.05)
    monkeypatch.setattr(by_ray, "_PATIENCE", 1.0)
    monkeypatch.setattr(by_ray, "unanswered", silent)
    with pytest.raises(LostWorkError, match=f"{nodes.address}, does not answer") as found:
        apply(edit, base, out, storage=storage, cluster="ray")
    assert "the same command goes on" in found.value.remedy
    assert len(set(asked)) == 2  # and this machine's node
    assert left_behind(out) == [".out.ws-partial"]
    end.touch()  # its process lives, which a lost cluster's does not: it may end
    for each in (out, tmp_path / "plain"):
        apply(Negate(vector(inputs, base, "keep"), 1.0), base, each, storage=storage)
    assert digests(out) == digests(tmp_path / "plain")
    assert left_behind(out) == ["out"]


def test_the_command_line_does_the_same(
    nodes: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weightsurgery.cli.main import main

    for name, more in (("here", []), ("there", ["--cluster", "ray"])):
        typed = ["ws", "negate", str(inputs / "base"), str(inputs / "tuned"), "-q", *more]
        monkeypatch.setattr(sys, "argv", [*typed, "-o", str(tmp_path / name)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
    here, there = digests(tmp_path / "here"), digests(tmp_path / "there")
    differ = {name for name in here if here[name] != there[name]}
    assert differ == {"weightsurgery.json"}  # it holds the command line
    assert "--cluster" in (tmp_path / "there/weightsurgery.json").read_text()


def test_a_lost_node_changes_nothing(
    nodes: Any, inputs: Path, tmp_path: Path, wanted: Any
) -> None:  # from here on one node is left
    (other,) = (node for node in nodes.list_all_nodes() if not node.head)
    marker = tmp_path / "marker"
    base = Checkpoint.open(inputs / "base")
    edit = StuckOn(vector(inputs, base, "tuned"), 0.7, str(marker), other.node_id)
    storage = Storage(rounding="stochastic")
    plain = Negate(vector(inputs, base, "tuned"), 0.7)
    apply(plain, base, tmp_path / "plain", storage=storage)

    def lose() -> None:
        until(marker.exists)
        nodes.remove_node(other, allow_graceful=False)

    losing = threading.Thread(target=lose)
    losing.start()
    apply(edit, base, tmp_path / "out", storage=storage, cluster="ray")
    losing.join()
    assert marker.exists()  # a task was under way there, and ended with its node
    # The work may be done again before the cluster counts its nodes.
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    expected, found = digests(tmp_path / "plain"), digests(tmp_path / "out")
    assert found == expected


def test_its_own_node_lost_leaves_what_is_finished(
    nodes: Any, inputs: Path, tmp_path: Path
) -> None:  # no node is left then
    marker, out = tmp_path / "marker", tmp_path / "out"
    root, head = str(Path(__file__).parents[2]), nodes.head_node
    driver = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(inputs), str(out), str(marker), head.node_id],
        cwd=root, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: marker.exists() or driver.poll() is not None)
    assert marker.exists()
    assert driver.poll() is None
    head.kill_raylet()
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 1, said
    assert "OURS: cluster: lost while it was at work: its node" in said
    assert "the same command goes on where this one stopped." in said
    assert left_behind(out) == [".out.ws-partial"]
    assert (tmp_path / ".out.ws-partial/journal.jsonl").is_file()
