"""Edits on a cluster of two hosts with networks of their own, whose link is cut at a random moment.

The hosts are network namespaces joined by a pair of virtual interfaces; files are shared. `ray
start` runs in each, as on two machines, and asks for a token. A host that is cut off is not dead:
it goes on writing to the shared files while its tasks are done again elsewhere. It takes root.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scripts.soak_parts.cluster import EDITS, ends, on_one_machine, start, weights
from scripts.soak_parts.state import State
from tests.conftest import left_behind
from tests.surgery.inputs import write_inputs

COUNT = 24
HEAD, OTHER = "ws-soak-a", "ws-soak-b"
ADDRESSES = {HEAD: "10.77.0.1", OTHER: "10.77.0.2"}
PORT = 6379
LOSSES = ("link", "host", "driver", "token")


def run(state: State, count: int | None) -> None:
    """Cut the link, end a host or the driver, or come without a token; compare with one machine."""
    names = [f"{EDITS[n % 3].split()[0]}:{n}" for n in range(count or COUNT)]
    if not any(map(state.todo, names)):
        return
    if os.geteuid() or not shutil.which("ip"):
        state.note("hosts", "left out", why="network namespaces take root, and ip of iproute2")
        return
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    with tempfile.TemporaryDirectory(dir=state.folder) as folder, _joined():
        root = Path(folder)
        write_inputs(root, 5000)
        wanted, _ = on_one_machine(root)
        # Ray's sockets lie there, and a path to a socket has at most 107 characters.
        with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as short:
            _begin(HEAD, Path(short))
            _begin(OTHER, Path(short))
            for number, name in enumerate(filter(state.todo, names)):
                with state.trial(name) as facts:
                    draw = random.Random(name)
                    which = int(name.rpartition(":")[2]) % 3
                    facts["lost"] = LOSSES[number % len(LOSSES)]
                    _once(root, EDITS[which], facts, draw.uniform(0, 1))
                    assert weights(root / "out") == wanted[which]
                    assert left_behind(root / "out") == ["out"]
                shutil.rmtree(root / "out", ignore_errors=True)
                if facts["lost"] in ("link", "host"):
                    _ip("-n", HEAD, "link", "set", "soak", "up")
                    _end(OTHER)
                    _begin(OTHER, Path(short))


def _once(root: Path, edit: str, facts: dict[str, Any], after: float) -> None:
    if facts["lost"] == "token":
        stranger = _start(edit, root, RAY_AUTH_TOKEN=secrets.token_hex(32))
        _, errors = stranger.communicate(timeout=240)
        assert stranger.returncode == 1, errors[-2000:]
        assert not (root / "out").exists()
        ends(_start(edit, root), 0)
        return
    driver = _start(edit, root)
    journal = root / ".out.ws-partial/journal.jsonl"
    while driver.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.02)
    time.sleep(after)
    if driver.poll() is not None:
        facts["outcome"] = "done before"
    elif facts["lost"] == "link":
        _ip("-n", HEAD, "link", "set", "soak", "down")
    elif facts["lost"] == "host":
        _end(OTHER)
    else:
        driver.send_signal(signal.SIGKILL)
        assert driver.wait(240) in (0, -signal.SIGKILL)
        if not (root / "out").exists():
            driver = _start(edit, root)
    begun = time.monotonic()
    ends(driver, 0)
    facts["seconds"] = round(time.monotonic() - begun, 1)


def _start(edit: str, root: Path, **environment: str) -> subprocess.Popen[str]:
    settings = [f"{name}={value}" for name, value in environment.items()]
    return start(edit, root, "out", f"{ADDRESSES[HEAD]}:{PORT}", [*_inside(HEAD), "env", *settings])


@contextmanager
def _joined() -> Iterator[None]:
    """Two namespaces whose interfaces ``soak`` are joined, and all that runs there ended after."""
    try:
        for name in (HEAD, OTHER):
            _ip("netns", "add", name)
        _ip("link", "add", "soak", "netns", HEAD, "type", "veth", "peer", "soak", "netns", OTHER)
        for name, address in ADDRESSES.items():
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "soak")
            for interface in ("lo", "soak"):
                _ip("-n", name, "link", "set", interface, "up")
        yield
    finally:
        for name in (HEAD, OTHER):
            with suppress(subprocess.CalledProcessError):
                _end(name)
                _ip("netns", "del", name)


def _begin(host: str, folder: Path) -> None:
    """`ray start` in a namespace, as the manual says it."""
    head = f"{ADDRESSES[HEAD]}:{PORT}"
    role = [f"--address={head}"]
    if host == HEAD:
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", *role),
        f"--node-ip-address={ADDRESSES[host]}",
        "--num-cpus=1",
        f"--object-store-memory={80 << 20}",
        f"--temp-dir={folder / host[-1]}",
    ]
    found = subprocess.run([*_inside(host), *command], capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stdout[-1000:] + found.stderr[-1000:]


def _end(host: str) -> None:
    """Kill all that runs in a namespace."""
    for _ in range(100):
        running = _ip("netns", "pids", host).split()
        if not running:
            return
        for pid in map(int, running):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    raise RuntimeError(f"{host}: processes that do not end")


def _inside(host: str) -> Sequence[str]:
    return ("ip", "netns", "exec", host)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
