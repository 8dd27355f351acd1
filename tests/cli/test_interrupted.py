"""Ctrl-C: exit code 130, one sentence that says how to go on, and nothing half-done left behind."""

import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from tests.cli.typed import WS, ws
from tests.conftest import left_behind, write_checkpoint
from weightsurgery.cli.main import main


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Matrices that take seconds to decompose."""
    root = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.mlp.up_proj.weight": torch.randn(1024, 1024, generator=generator)
            for i in range(16)}  # fmt: skip
    tuned = {name: t + 0.01 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    return write_checkpoint(root / "base", base, 2), write_checkpoint(root / "tuned", tuned, 2)


def interrupted(words, begun) -> tuple[int, str]:
    """Run it, press Ctrl-C when it has begun; how it ended, and what it said."""
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it
    command = [WS, *map(str, words)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while running.poll() is None and not begun():
        time.sleep(0.0002)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    return running.returncode, said.strip()


@pytest.mark.parametrize("words", [
    ["subspace", "--rank", "200"], ["diff", "--rank", "200"], ["export", "--rank", "200"],
], ids=lambda words: words[0])  # fmt: skip
def test_what_writes_leaves_nothing(pair, tmp_path, words):
    out = tmp_path / "out"
    command = [words[0], *pair, *words[1:], "-o", out, "--workers", "1"]
    for _ in range(5):  # on a busy machine it can be done before the signal comes
        shutil.rmtree(out, ignore_errors=True)
        code, said = interrupted(command, lambda: left_behind(out) not in ([], ["out"]))
        if code != 0:
            break
    assert (code, said) == (130, "Interrupted; nothing was written.")
    assert left_behind(out) == []
    assert ws(*command).returncode == 0


def test_quiet_is_quiet_then_too(pair, tmp_path):
    out = tmp_path / "out"
    command = ["subspace", *pair, "--rank", "200", "-o", out, "--workers", "1", "-q"]
    code, said = interrupted(command, lambda: left_behind(out) not in ([], ["out"]))
    assert (code, said) in ((130, ""), (0, ""))


_WHILE_IMPORTING = """
import sys
class Pressed:
    def find_spec(self, name, *_):
        if name == "weightsurgery.cli.sweep":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
sys.argv = ["ws", "--version"]
"""


@pytest.mark.parametrize(("entry", "ends"), [
    ("weightsurgery.cli.main", None), ("weightsurgery.__main__", (130, "Interrupted.")),
], ids=["before", "as ws begins"])  # fmt: skip
def test_pressed_while_the_commands_are_imported(entry, ends):
    code = f"{_WHILE_IMPORTING}\nfrom {entry} import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if ends is None:
        assert "Traceback" in done.stderr
    else:
        assert (done.returncode, done.stderr.strip()) == ends


def test_pressed_before_the_command_line_is_read(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ws", "--version"])
    monkeypatch.setattr("typer.main.get_group", pressed)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, capsys.readouterr().err.strip()) == (130, "Interrupted.")


def pressed(*_):
    raise KeyboardInterrupt
