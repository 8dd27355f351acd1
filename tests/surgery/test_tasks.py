"""Edits as tasks, done one by one in this process, in another order, and twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import left_behind
from tests.surgery.here import Here
from tests.surgery.inputs import MATRICES, digests, edits, vector
from weightsurgery import AdapterStorage, Negate, Storage, apply
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import versions
from weightsurgery.errors import ClusterError, EditError, LostWorkError
from weightsurgery.surgery import as_checkpoint, tasks
from weightsurgery.vectors.task_vector import MappedChange, TaskVector


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(as_checkpoint, "RayCluster", Here)
    monkeypatch.setattr(tasks, "RANGE", tasks.WINDOW)


@pytest.mark.parametrize("name", ["stretches", "matrices", "blocks", "stochastic"])
def test_the_bytes_are_those_of_a_run_on_one_machine(
    inputs: Path, tmp_path: Path, name: str
) -> None:
    base = Checkpoint.open(inputs / "base")
    edit, storage = edits(inputs, base)[name]
    apply(edit, base, tmp_path / "wanted", storage=storage)
    wanted = digests(tmp_path / "wanted")
    assert not digests(inputs / "base").items() <= wanted.items()
    apply(edit, base, tmp_path / "out", storage=storage, cluster="ray")
    assert digests(tmp_path / "out") == wanted
    assert left_behind(tmp_path / "out") == ["out"]


@pytest.mark.parametrize("name", ["stretches", "matrices", "blocks"])
def test_tasks_cover_each_byte_of_the_tensors_once(inputs: Path, tmp_path: Path, name: str) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    class Watched(Here):
        def done(self, who: Any, each: Any) -> Any:
            if isinstance(each, tasks.Task):
                seen.setdefault(each.shard, []).append((each.start, each.stop))
            return super().done(who, each)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(as_checkpoint, "RayCluster", Watched)
        base = Checkpoint.open(inputs / "base")
        edit, storage = edits(inputs, base)[name]
        apply(edit, base, tmp_path / "out", storage=storage, cluster="ray")
    headers = Checkpoint.open(tmp_path / "out").shards
    assert len(headers) == 2
    for shard, header in headers.items():
        parts = sorted(seen[shard])
        assert len(parts) > 2
        for (_, stop), (start, _) in pairwise(parts):
            assert stop == start
        assert parts[0][0] in (0, header.entries[0].start)
        assert parts[-1][1] == header.size


def test_no_weights_are_sent(inputs: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(inputs / "base")
    held = TaskVector.of(MappedChange({MATRICES[0]: torch.ones(700, 1000)}))
    apply(Negate(held), base, tmp_path / "here", allow_unrelated=True)
    with pytest.raises(EditError, match="in memory, on a cluster"):
        apply(Negate(held), base, tmp_path / "out", allow_unrelated=True, cluster="ray")
    assert left_behind(tmp_path / "out") == []


def test_a_stopped_run_goes_on_here_or_there(inputs: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(inputs / "base")
    edit, storage = edits(inputs, base)["matrices"]
    apply(edit, base, tmp_path / "wanted", storage=storage)
    wanted = digests(tmp_path / "wanted")
    for cluster, then in (("ray", None), (None, "ray"), ("ray", "ray")):
        out = tmp_path / f"{cluster} {then}"
        steps = 0

        def stop(*_: object) -> None:
            nonlocal steps
            steps += 1
            if steps == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            apply(edit, base, out, storage=storage, cluster=cluster, workers=1, progress=stop)
        assert left_behind(out) == [f".{out.name}.ws-partial"]
        apply(edit, base, out, storage=storage, cluster=then)
        assert digests(out) == wanted


def test_storage_that_loses_a_write_is_found_out(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    class Lossy(Here):
        lost = False

        def done(self, who: Any, each: Any) -> Any:
            if isinstance(each, tasks.Check) and each.parts and not Lossy.lost:
                Lossy.lost = True
                with each.path.open("r+b") as file:
                    file.seek(each.parts[0][0] + 9)
                    file.write(b"\xff" * 4)
            return super().done(who, each)

    base = Checkpoint.open(inputs / "base")
    edit, storage = edits(inputs, base)["matrices"]
    apply(edit, base, tmp_path / "wanted", storage=storage)
    monkeypatch.setattr(as_checkpoint, "RayCluster", Lossy)
    with pytest.raises(LostWorkError, match="are not those that were written"):
        apply(edit, base, out, storage=storage, cluster="ray")
    assert left_behind(out) == [".out.ws-partial"]
    apply(edit, base, out, storage=storage, cluster="ray")
    assert digests(out) == digests(tmp_path / "wanted")


@pytest.mark.parametrize("hidden", ["output", "input"])
def test_a_node_that_sees_other_files_is_named(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    class Elsewhere(Here):
        def results(self, run: str, packed: bytes, *rest: Any) -> Iterator[Any]:
            ours = b"cluster.run" if hidden == "output" else b"\x05tuned"  # a part of its path
            assert ours in packed
            return super().results(run, packed.replace(ours, ours.title()), *rest)

    monkeypatch.setattr(as_checkpoint, "RayCluster", Elsewhere)
    monkeypatch.setattr("socket.gethostname", lambda: "n7")
    base = Checkpoint.open(inputs / "base")
    with pytest.raises(ClusterError, match="not there on node n7") as found:
        apply(Negate(vector(inputs, base, "tuned")), base, tmp_path / "out", cluster="ray")
    assert "storage that all nodes mount" in found.value.remedy
    assert left_behind(tmp_path / "out") == []


def test_a_node_with_another_version_is_named(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Here, "versions", {**versions(), "torch": "1.0"})
    base = Checkpoint.open(inputs / "base")
    with pytest.raises(ClusterError, match=r"torch is .*, where the edit was started it is 1\.0"):
        apply(Negate(vector(inputs, base, "tuned")), base, tmp_path / "out", cluster="ray")


def test_an_adapter_is_no_work_for_a_cluster(inputs: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(inputs / "base")
    edit, _ = edits(inputs, base)["matrices"]
    with pytest.raises(EditError, match="an adapter on a cluster"):
        apply(edit, base, tmp_path / "out", storage=AdapterStorage(), cluster="ray")
    apply(edit, base, tmp_path / "out", storage=Storage(), cluster="ray")


def test_what_is_noted_of_a_tensor_is_what_lies_there(inputs: Path, tmp_path: Path) -> None:
    """A run on one machine reads back what the cluster's tasks told, and takes it."""
    base = Checkpoint.open(inputs / "base")
    edit, storage = edits(inputs, base)["matrices"]

    def stop(stage: str, *_: object) -> None:
        if stage == "checksums":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(edit, base, tmp_path / "out", storage=storage, cluster="ray", progress=stop)
    (part,) = (tmp_path / ".out.ws-partial/files").glob("*1-of-*.part")
    entry = Checkpoint.open(inputs / "base").entry(MATRICES[0])
    before = hashlib.sha256(part.read_bytes()).hexdigest()
    with part.open("r+b") as file:  # one of them is not what was noted any more
        file.seek(entry.start + 1)
        file.write(b"\0\0\0")
    assert hashlib.sha256(part.read_bytes()).hexdigest() != before
    steps: list[str] = []
    apply(edit, base, tmp_path / "out", storage=storage, progress=lambda s, *_: steps.append(s))
    apply(edit, base, tmp_path / "wanted", storage=storage)
    assert digests(tmp_path / "out") == digests(tmp_path / "wanted")
