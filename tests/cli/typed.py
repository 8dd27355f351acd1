"""``ws`` as a user types it: in a process of its own, or in this one, which has loaded torch."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from weightsurgery.cli.main import main

WS = str(Path(sys.executable).with_name("ws"))


def ws(*arguments, **options) -> subprocess.CompletedProcess:
    """Runs it in a process of its own, which takes a second."""
    return subprocess.run(
        [WS, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def two_lines(done: subprocess.CompletedProcess) -> tuple[str, str]:
    """What went wrong and the remedy; nothing else was printed."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    what, remedy = done.stderr.strip().splitlines()
    return what, remedy


def weights(directory: Path) -> dict[str, bytes]:
    """Every shard of a checkpoint by its name."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}


@dataclass
class Command:
    """Runs it in this process."""

    capsys: pytest.CaptureFixture
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments) -> subprocess.CompletedProcess:
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["ws", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = self.capsys.readouterr()
        code = stopped.value.code or 0
        return subprocess.CompletedProcess(sys.argv, code, said.out, said.err)

    def run(self, *arguments) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        done = self(*arguments)
        return done.returncode, done.stdout, done.stderr

    def done(self, *arguments) -> tuple[str, str]:
        """What a good run prints to stdout and to stderr."""
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    def document(self, *arguments) -> dict:
        return json.loads(self.done(*arguments, "--json")[0])

    def refused(self, *arguments) -> tuple[str, str]:
        """What was wrong, and the remedy."""
        return two_lines(self(*arguments))
