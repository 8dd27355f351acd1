"""What ``--cluster`` refuses before anything is begun; no cluster is needed for that."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import left_behind
from tests.surgery.inputs import write_inputs
from weightsurgery.cli.main import main
from weightsurgery.errors import LostWorkError
from weightsurgery.surgery import addresses, cluster


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names")
    write_inputs(root, rows=4)
    return root


@pytest.fixture
def refused(inputs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs what works on one machine with ``--cluster``: what was wrong, and the remedy."""

    def run(cluster: str, *more: str, command: str = "negate") -> tuple[str, str]:
        out = tmp_path / "out"
        typed = ["ws", command, str(inputs / "base"), *(more or (str(inputs / "tuned"),))]
        monkeypatch.setattr(sys, "argv", [*typed, "-o", str(out), "--cluster", cluster])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert stopped.value.code == 1, said.err
        assert left_behind(out) == []
        what, remedy = said.err.strip().splitlines()
        return what.removeprefix("error: "), remedy

    return run


def test_without_ray_the_extra_is_named(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightsurgery.deferred.find_spec", lambda name: None)
    what, remedy = refused("ray")
    assert what == "--cluster spreads the work with Ray, and ray is not installed"
    assert remedy == "Install it with:  pip install 'weightsurgery[ray]'"


@pytest.mark.parametrize("name", ["slurm", "ray://", "Ray", "ray:1"])
def test_a_name_that_is_no_clusters(refused: Any, name: str) -> None:
    what, remedy = refused(name)
    assert what == f"cluster {name!r}"
    assert "--cluster ray" in remedy


@pytest.mark.parametrize(
    ("name", "address"),
    [("ray", "127.0.0.1:1"), ("ray://127.0.0.1:1", ""), ("ray://127.0.0.1", ""), ("ray", "no:9x")],
)
def test_an_address_where_nobody_answers(
    refused: Any, monkeypatch: pytest.MonkeyPatch, name: str, address: str
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    what, remedy = refused(name)
    assert what.startswith(f"cluster {address or name}: nothing answers there (")
    assert "ray start --head" in remedy


def test_a_run_of_a_model_is_no_work_for_a_cluster(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    data = str(tmp_path / "data.jsonl")
    what, _ = refused("ray", "--forget", data, "--keep", data, command="project")
    assert what.startswith("--cluster with data")


def test_a_cluster_that_is_gone_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert addresses.running() is None
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray/ray_current_cluster").write_text(f"{address}\n")
        assert addresses.running() == address
    assert addresses.running() is None


def test_a_server_that_is_gone_is_told_in_two_lines() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    with (
        pytest.raises(LostWorkError, match="at work: GRPC connection failed: <") as found,
        cluster._told(),
    ):
        raise ConnectionError("GRPC connection failed: <\n\tstatus = FAILED_PRECONDITION\n>")
    assert len(str(found.value).splitlines()) == 2
    assert "the same command goes on" in found.value.remedy
    bug = exceptions.RayTaskError("perform", "Traceback", ConnectionError("ours"))
    with pytest.raises(ConnectionError), cluster._told():  # of a task, not of the cluster
        raise bug.as_instanceof_cause()
