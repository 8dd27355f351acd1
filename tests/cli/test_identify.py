"""`ws identify`: options, output, progress, refusals."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from tests.cli import forked
from tests.cli.typed import ws
from tests.conftest import read_tensors
from tests.learning.tiny import FACTS, OTHER, save, tiny, write
from weightsurgery.cli.main import main

FAST = ["--steps", "3", "--lr", "3e-3", "--batch", "4", "--device", "cpu"]


def quick(*words, cwd):
    """What needs no process of its own from the first import on."""
    return forked.run(words, cwd)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model and its data."""
    where = tmp_path_factory.mktemp("identify")
    save(tiny("llama"), where / "base")
    write(where / "facts.jsonl", FACTS)
    write(where / "other.jsonl", OTHER)
    (where / "empty.jsonl").write_text("")
    return where


def test_identifies_and_takes_away(place):
    done = ws("identify", "base", "facts.jsonl", "-o", "v", *FAST, cwd=place)
    assert done.returncode == 0, done.stderr
    assert re.search(r"layer 0 +3 +\d\.\d{4} +\d\.\d{4}", done.stdout)
    assert re.search(r"layer 1 +3", done.stdout)
    (hint,) = done.stderr.strip().splitlines()  # no progress, no log lines of libraries
    command = hint.partition("with:  ws ")[2].split()
    assert command[0] == "negate"
    assert ws(*command, cwd=place).returncode == 0
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = (read_tensors(place / each)[name] for each in ("base", "edited"))
    assert (before - read_tensors(place / "v")[name] - after).abs().max() < 1e-6
    assert not before.equal(after)
    assert ws("verify", "v", cwd=place).returncode == 0


def test_json_is_the_record(place):
    options = ["--mode", "joint", "--lora-rank", "2", "--keep", "other.jsonl", "--json"]
    options += ["--trainer-arg", "lr_scheduler_type=linear", "--trainer-arg", "adam_beta2=0.95"]
    done = quick("identify", "base", "facts.jsonl", "-o", "w", *FAST, *options, cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "task-vector"
    assert found["parameters"]["method"]["lora_rank"] == 2
    extra = {"lr_scheduler_type": "linear", "adam_beta2": 0.95}
    assert found["parameters"]["training"]["extra"] == extra
    assert set(found["inputs"]) == {"base", "data", "keep"}
    assert found == {"out": "w", **json.loads((place / "w" / "weightsurgery.json").read_text())}


def test_a_dry_run_writes_nothing(place):
    before = sorted(place.rglob("*"))
    done = quick("identify", "base", "facts.jsonl", "-o", "dry", *FAST, "--dry-run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "gradients" in done.stdout
    assert "layer 1" in done.stdout
    assert sorted(place.rglob("*")) == before


def test_progress_in_a_terminal_names_layer_and_loss(place):
    """And leaves the terminal clean of what libraries print."""
    master, slave = pty.openpty()
    script = (
        "import weightsurgery.cli.console as console; console._Bar.__init__.__globals__['time']"
        " = type('Clock', (), {'monotonic': staticmethod(iter(range(0, 10**6, 2)).__next__)});"
        "import sys; sys.argv = ['ws', *sys.argv[1:]];"
        "from weightsurgery.cli.main import main; main()"
    )
    words = ["identify", "base", "facts.jsonl", "-o", "terminal", *FAST]
    with subprocess.Popen(
        [sys.executable, "-c", script, *words], cwd=place, stdout=subprocess.DEVNULL, stderr=slave,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    ) as running:  # fmt: skip
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
    os.close(master)
    assert running.returncode == 0
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"layer 1 \(2 of 2\), loss \d", text)
    assert "Warning" not in text


@pytest.mark.parametrize(
    ("words", "fault", "remedy"),
    [
        (["empty.jsonl"], "no examples", "line"),
        (["missing.jsonl"], "cannot be read", "path"),
        (["facts.jsonl", "--mode", "both"], "mode 'both'", "delta"),
        (["facts.jsonl", "--steps", "3", "--epochs", "1"], "--steps and --epochs", "one"),
        (["facts.jsonl", "--trainer-arg", "x"], "--trainer-arg x", "NAME=VALUE"),
        (["facts.jsonl", "--trainer-arg", "nonsense=1"], "'nonsense'", "spelling"),
        (["facts.jsonl", "--targets", "embeddings"], "belongs to no layer", "joint"),
        (["facts.jsonl", "--layers", "7"], "no tensor", "--layers"),
        (["facts.jsonl", "--precision", "bfloat16", "--dtype", "float16"], "--dtype float16",
         "--precision"),
        (["facts.jsonl", "--max-memory", "1"], "--max-memory", "activations"),
        (["facts.jsonl", "--device-map", "auto"], "--device-map", "activations"),
        (["facts.jsonl", "--mode", "activations", "--steps", "2"], "trains nothing", "Leave"),
        (["facts.jsonl", "--device", "tpu"], "device 'tpu'", "cpu"),
    ],
)  # fmt: skip
def test_refusals_have_two_lines_and_leave_nothing(
    place, words, fault, remedy, monkeypatch, capsys
):
    before = sorted(place.iterdir())
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["ws", "identify", "base", *words, "-o", "refused"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    what, todo = capsys.readouterr().err.strip().splitlines()
    assert fault in what
    assert remedy in todo
    assert sorted(place.iterdir()) == before


def test_activations_are_gathered_without_training(place):
    words = ["identify", "base", "other.jsonl", "-o", "stats", "--mode", "activations"]
    # As a recipe writes it out, an older one too.
    words += [
        "--lr",
        "1e-4",
        "--batch",
        "8",
        "--warmup",
        "0",
        "--epochs",
        "3",
        "--dtype",
        "float32",
    ]
    done = quick(*words, "--device", "cpu", cwd=place)
    assert done.returncode == 0, done.stderr
    record = json.loads((place / "stats" / "weightsurgery.json").read_text())
    assert record["kind"] == "activation-statistics"
    assert record["summary"]["examples"] == len(OTHER)
