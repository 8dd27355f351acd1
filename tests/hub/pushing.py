"""What tests of `ws push` have in common."""

import json
import subprocess
from pathlib import Path

from tests.conftest import snapshot

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
HOST = r"http://127\.0\.0\.1:\d+/"


def ok(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def error(done: subprocess.CompletedProcess) -> tuple[str, str]:
    """The two lines of an error; notices may come before."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    what, remedy = done.stderr.strip().splitlines()[-2:]
    assert what.startswith("error: ")
    return what, remedy


def writes(server) -> list[str]:
    return [f"{each.method} {each.path}" for each in server.requests if each.method in WRITES]


def recorded(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in snapshot(out).items() if name != "README.md"}


def shards(out: Path) -> dict[str, str]:
    """SHA-256 of each shard by name."""
    files = json.loads((out / "weightsurgery.json").read_text())["files"]
    return {n: each["sha256"] for n, each in files.items() if n.endswith(".safetensors")}
