"""A command that fetches is killed for good; the same command goes on where it stopped."""

import signal
import subprocess
import time

import pytest
import torch

from tests.conftest import snapshot, write_checkpoint
from tests.hub.standin import WS
from tests.hub.test_remote import document, fetched, files, kept
from weightsurgery.checkpoint.remote import NOTED

# Two windows are listed, and some of a third is under way, when the server falls silent.
HELD_AT = 2 * NOTED + (1 << 20)
PATIENCE = 200.0


@pytest.fixture
def pair(hub, tmp_path):
    """``org/base`` and ``org/tuned``: a tensor of two windows and a half, and a small one."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "layers.0.input_layernorm.weight": torch.randn(5 * NOTED // 8, generator=generator),
        "layers.0.self_attn.q_proj.weight": torch.randn(64, 64, generator=generator),
    }
    for name in ("base", "tuned"):
        if name == "tuned":
            tensors = {k: v + 0.01 * v.roll(1) for k, v in tensors.items()}
        write_checkpoint(tmp_path / name, tensors, 2, {"model_type": "llama"})
        hub.server.add(f"org/{name}", files(tmp_path / name))
    return tmp_path


def test_a_killed_diff_goes_on_where_it_stopped(hub, pair):
    command = ("diff", "org/base", "org/tuned", "--remote", "--json", "-o")
    whole = sum(path.stat().st_size for path in pair.glob("*/*.safetensors"))
    hub.server.fault("/cdn", cut_after=HELD_AT, hold=True, times=100)
    running = subprocess.Popen(
        [WS, *command, str(pair / "out")],
        env=hub.env | {"HF_HUB_DOWNLOAD_TIMEOUT": "600"},  # the silence shall last until the kill
        cwd=hub.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + PATIENCE
    while kept(hub) < 4 * NOTED and time.monotonic() < deadline:
        assert running.poll() is None, running.stderr.read().decode()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not (pair / "out").exists()
    here, sent = kept(hub), fetched(hub)
    assert 4 * NOTED <= here <= sent < whole  # the server counts what it held, and no more

    hub.server.released.set()
    hub.server.faults.clear()
    hub.server.forget()
    found = document(hub.ws(*command, pair / "out"))
    again = fetched(hub)
    assert again == whole - here  # from nothing, it would have been all
    twice = sent + again - whole
    assert 0 <= twice < 2 * NOTED  # a window of either file

    hub.server.forget()
    fresh = {"WEIGHTSURGERY_CACHE": str(pair / "fresh")}
    undisturbed = document(hub.ws(*command, pair / "other", env=fresh))
    assert fetched(hub) == whole
    assert found["tensors"] == undisturbed["tensors"]
    ours, theirs = snapshot(pair / "out"), snapshot(pair / "other")
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"weightsurgery.json"}:
        assert ours[name] == theirs[name]
