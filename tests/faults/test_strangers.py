"""Checkpoints that are pickles, holes or links: refused or read within bounds, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import pytest

from tests.checkpoint.handmade import frame
from tests.faults.running import Faults, Server
from tests.faults.trials import argv, digests

STEER = "\x1b]0;owned\x07\x1b[2J\u202e"


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [
    "pytorch_model.bin", "model.safetensors", "model.pt", "adapter_model.bin", "optimizer.pt",
    "weightsurgery.json", "config.json", "tokenizer.json",
])  # fmt: skip
def test_a_pickle_is_never_unpickled(
    server: Server, inputs: Path, tmp_path: Path, name: str
) -> None:
    place, trap = tmp_path / "model", tmp_path / "trap"
    place.mkdir()
    if name.startswith("adapter"):
        (place / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (place / name).write_bytes(pickle.dumps(Touches(trap)))
    out = ["-o", tmp_path / "out"]
    for words in (["inspect", place], ["negate", inputs / "base", place, *out],
                  ["verify", place], ["negate", place, inputs / "tuned", *out]):  # fmt: skip
        done = server.run(words, tmp_path)
        assert done.code == 1, done
        assert "Traceback" not in done.stderr
        assert not trap.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads((place / name).read_bytes())  # the trap is one
    assert trap.exists()


def test_a_file_that_is_one_hole(server: Server, tmp_path: Path) -> None:
    """Two terabytes by its header, a block on the disk: looked at at once, in no memory."""
    size = 1 << 41
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        header = {"a.q_proj.weight": {"dtype": "BF16", "shape": [1 << 20, 1 << 20],
                                      "data_offsets": [0, size]}}  # fmt: skip
        path = tmp_path / name / "model.safetensors"
        path.write_bytes(frame(header))
        with path.open("r+b") as file:
            try:
                file.truncate(path.stat().st_size + size)
            except OSError:
                pytest.skip("this file system holds no file of two terabytes")
    begun = time.monotonic()
    limits = {"RLIMIT_CPU": 60}
    done = server.run(["inspect", "base"], tmp_path, limits=limits)
    assert done.code == 0, done
    assert "2.2 TB" in done.stdout or "2,199" in done.stdout, done.stdout
    done = server.run(["negate", "base", "tuned", "-o", "out"], tmp_path, limits=limits)
    assert done.code == 1
    assert "Free some space" in done.stderr, done.stderr
    assert not [each for each in os.listdir(tmp_path) if "out" in each]
    assert time.monotonic() - begun < 300


def test_nothing_outside_of_the_target_is_touched(
    server: Server, inputs: Path, tmp_path: Path
) -> None:
    """A base with links, steering names and paths that lead out."""
    base, secret = tmp_path / "base", tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("hf_secret")
    base.mkdir()
    for each in (inputs / "base").iterdir():
        (base / each.name).write_bytes(each.read_bytes())
    (base / "tokenizer_config.json").symlink_to(secret / "key")
    before = digests(tmp_path)
    done = server.run(argv(f"negate {base} IN/tuned -o out", inputs), tmp_path)
    assert done.code == 1
    assert "leads out" in done.stderr
    assert digests(tmp_path) == before
    (base / "tokenizer_config.json").unlink()
    index = json.loads((base / "model.safetensors.index.json").read_text())
    for path in ("../secret/key", str(secret / "key"), "a/../../secret/key"):
        changed = {**index, "weight_map": {**index["weight_map"], "x": path}}
        (base / "model.safetensors.index.json").write_text(json.dumps(changed))
        done = server.run(argv(f"negate {base} IN/tuned -o out", inputs), tmp_path)
        assert done.code == 1, done
        assert "hf_secret" not in done.stdout + done.stderr
        assert not (tmp_path / "out").exists()
    assert (secret / "key").read_text() == "hf_secret"


def test_names_steer_no_terminal_page_or_card(server: Server, tmp_path: Path) -> None:
    import torch

    from tests.conftest import write_checkpoint

    names = [f"layers.{n}.{STEER}<script>alert(1)</script>.weight" for n in range(2)]
    weights = {name: torch.eye(3) for name in names}
    write_checkpoint(tmp_path / "base", weights, 1, {"model_type": STEER})
    write_checkpoint(tmp_path / "tuned", {n: t * 2 for n, t in weights.items()})
    said = ""
    for words in ("inspect base", "diff base tuned --html page.html", "negate base tuned -o out -v",
                  "report out --html about.html", "verify out",
                  "push out owner/name --dry-run"):  # fmt: skip
        done = server.run(words.split(), tmp_path, env={"HF_TOKEN": ""})
        said += done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done
    pages = [path.read_text() for path in tmp_path.glob("*.html")]
    assert pages
    for text in (said, *pages):
        for sign in ("\x1b", "\x07", "\u202e"):
            assert sign not in text
    for page in pages:
        assert "<script>alert" not in page


def test_what_is_imported_asks_no_network(server: Server, tmp_path: Path) -> None:
    """The server imports every module with the network taken away; here a command has none."""
    cut = "import socket; socket.socket.connect = None; socket.getaddrinfo = None"
    for words in (["--version"], ["negate", "--help"], ["unlearn", "--list"]):
        assert server.run(words, tmp_path, before=cut).code == 0
    assert server.imported_without_network


def test_a_killed_command_is_seen(server: Server, inputs: Path, tmp_path: Path) -> None:
    """The shim works: without it, every test here of a fault would pass."""
    here = tmp_path / "here"
    here.mkdir()
    words = argv("negate IN/base IN/tuned -o out", inputs)
    assert server.run(words, here, Faults(here, kill_at=3)).code == -9
    assert digests(here)
