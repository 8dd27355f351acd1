"""Edits on a cluster of two nodes that loses a process, a node or its driver at a random moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.soak_parts.state import State
from tests.conftest import left_behind
from tests.surgery.inputs import digests, write_inputs

__all__ = ["EDITS", "ends", "on_one_machine", "run", "start", "weights"]

COUNT = 24
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
EDITS = (
    "negate base tuned --scale 0.7",
    "project base --forget tuned --keep keep --rank 4",
    "add base tuned:0.5 keep --dtype float32",
)
LOSSES = ("process", "node", "driver", "interrupted")


def run(state: State, count: int | None) -> None:
    """Lose something, begin again where the driver went with it, and compare with one machine."""
    names = [f"{EDITS[n % 3].split()[0]}:{n}" for n in range(count or COUNT)]
    if not any(map(state.todo, names)):
        return
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    with tempfile.TemporaryDirectory(dir=state.folder) as folder:
        root = Path(folder)
        write_inputs(root, 5000)  # 10 MB a matrix: long enough to be in the middle of
        wanted, seconds = on_one_machine(root)
        cluster = Cluster(True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
        try:
            for number, name in enumerate(filter(state.todo, names)):
                with state.trial(name) as facts:
                    draw = random.Random(name)
                    which = int(name.rpartition(":")[2]) % 3
                    facts["lost"] = LOSSES[number % len(LOSSES)]
                    # Starting takes as long as on one machine, and Ray some seconds more.
                    after = draw.uniform(0.5, 1) * seconds[which] + draw.uniform(0, 4)
                    _once(cluster, root, EDITS[which], facts, after)
                    assert weights(root / "out") == wanted[which]
                    assert left_behind(root / "out") == ["out"]
                shutil.rmtree(root / "out", ignore_errors=True)
        finally:
            cluster.shutdown()


def on_one_machine(root: Path) -> tuple[list[dict[str, str]], list[float]]:
    """What each edit writes without a cluster, and the seconds that it takes."""
    wanted, seconds = [], []
    for number, edit in enumerate(EDITS):
        begun = time.monotonic()
        ends(start(edit, root, f"wanted{number}"), 0)
        wanted.append(weights(root / f"wanted{number}"))
        seconds.append(time.monotonic() - begun)
    return wanted, seconds


def _once(cluster: Any, root: Path, edit: str, facts: dict[str, Any], after: float) -> None:
    driver = start(edit, root, "out", cluster.address)
    time.sleep(after)
    if driver.poll() is not None:
        facts["outcome"] = "done before"
    elif facts["lost"] in ("driver", "interrupted"):
        lost = facts["lost"] == "driver"
        driver.send_signal(signal.SIGKILL if lost else signal.SIGINT)
        code = driver.wait(240)
        # Before our first line has run, Python itself ends by the signal.
        assert code in ((0, -9) if lost else (0, 130, -2)), code
        assert code == 0 or not (root / "out").exists()
        if code:
            driver = start(edit, root, "out", cluster.address)
    elif facts["lost"] == "node":
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        cluster.add_node(**NODE)
    else:
        workers = [pid for node in cluster.list_all_nodes() for pid in _workers(node)]
        facts["processes"] = len(workers)
        for pid in workers[:1]:
            os.kill(pid, signal.SIGKILL)
    ends(driver, 0)


def _workers(node: Any) -> list[int]:
    """Processes that do tasks: the children of a node's raylet that call themselves so."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    titles = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    # A node ends with its agents, and the driver with the node that it is on.
    return [
        n for n, title in titles.items() if title.startswith(b"ray::") and b"Agent" not in title
    ]


def start(
    edit: str, root: Path, out: str, address: str | None = None, prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """The command of an edit, on a cluster where an address is given; ``prefix`` runs it."""
    more = [] if address is None else ["--cluster", "ray"]
    env = {**os.environ, **({} if address is None else {"RAY_ADDRESS": address})}
    command = [
        *prefix,
        sys.executable,
        "-m",
        "weightsurgery",
        *edit.split(),
        "-q",
        "-o",
        out,
        *more,
    ]
    return subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def ends(driver: subprocess.Popen[str], code: int) -> None:
    """Wait for a command, which is to end with that code."""
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == code, f"exit code {driver.returncode}: {errors[-2000:]}"


def weights(out: Path) -> dict[str, str]:
    """Digests of all but the record, which holds the command line."""
    return {name: digest for name, digest in digests(out).items() if name != "weightsurgery.json"}
