"""A large checkpoint edited again and again under a bound of memory; many tensors, many edits."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.soak_parts.state import State

COUNT = 20
MEMORY = 2 << 30
PARAMETERS = 3_000_000_000
TOGETHER = 50
TENSORS = 1_000_000
TENSOR_BYTES = 10_000  # of memory, each
_SHARDS, _WIDTH = 8, 4096


def _write(folder: Path, parameters: int, change: float) -> Path:
    """Random bfloat16 weights: one block of them, rolled from tensor to tensor."""
    import torch
    from safetensors.torch import save_file

    if (folder / "done").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    block = torch.randn(_WIDTH, _WIDTH, generator=torch.Generator().manual_seed(0)) * 0.02
    block = (block * (1 + change)).bfloat16()
    per = max(1, parameters // (_WIDTH * _WIDTH) // _SHARDS)
    weight_map = {}
    for shard in range(_SHARDS):
        names = [f"model.layers.{shard * per + n}.mlp.up_proj.weight" for n in range(per)]
        file = f"model-{shard + 1:05d}-of-{_SHARDS:05d}.safetensors"
        save_file({n: block.roll(i + per * shard).clone() for i, n in enumerate(names)},
                  folder / file, {"format": "pt"})  # fmt: skip
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "done").touch()
    return folder


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(json.loads((folder / "weightsurgery.json").read_text())["files"][path.name]
                     ["sha256"].encode())  # fmt: skip
    return digest.hexdigest()


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def run(state: State, count: int | None) -> None:
    """Many small edits side by side; a million tensors; edits in a row, of two gigabytes each."""
    _together(state)
    _tiny(state)
    names = [f"in a row:{number}" for number in range(count or COUNT)]
    parameters = int(os.environ.get("SOAK_PARAMETERS", PARAMETERS))
    folder = state.folder / "load"
    if any(state.todo(name) for name in names):
        free = shutil.disk_usage(state.folder).free
        if free < 7 * parameters:
            state.note("in a row:room", "left out", free=free)
        else:
            _in_a_row(state, names, folder, parameters)
            shutil.rmtree(folder)


def _in_a_row(state: State, names: list[str], folder: Path, parameters: int) -> None:
    base, changed = (_write(folder / n, parameters, c) for n, c in (("base", 0.0), ("tuned", 0.01)))
    wanted = None
    for name in names:
        if not state.todo(name):
            continue
        with state.trial(name) as facts:
            out = folder / "out"
            words = [sys.executable, "-m", "weightsurgery", "negate", str(base), str(changed), "-o",
                     str(out), "--overwrite", "-q"]  # fmt: skip
            begun = time.monotonic()
            running = subprocess.Popen(words, preexec_fn=_bounded, stderr=subprocess.PIPE)
            assert running.stderr is not None
            errors = running.stderr.read()
            _, status, used = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
            assert running.returncode == 0, errors
            facts["seconds"] = round(time.monotonic() - begun, 1)
            facts["peak_mb"] = round(used.ru_maxrss / 1024)
            facts["parameters"] = parameters
            assert used.ru_maxrss * 1024 < MEMORY, facts
            wanted = wanted or _digest(out)
            assert _digest(out) == wanted


def _tiny(state: State) -> None:
    from tests.faults.many import COMMANDS, measured, write_many

    tensors = int(os.environ.get("SOAK_TENSORS", TENSORS))
    names = {name: f"{tensors} tiny tensors, {name}:1" for name in COMMANDS}
    if not any(map(state.todo, names.values())):
        return
    here = state.folder / "tiny"
    shutil.rmtree(here, ignore_errors=True)
    for folder, value in (("base", 1.0), ("tuned", 1.5)):
        write_many(here / folder, tensors, value)
    for command, name in names.items():
        if not state.todo(name):
            continue
        with state.trial(name) as facts:
            code, _, seconds, megabytes = measured(COMMANDS[command], here)
            facts.update(seconds=round(seconds, 1), peak_mb=round(megabytes))
            assert code == 0, code
            assert megabytes < TENSOR_BYTES * tensors / 1e6 + 1000, facts
    shutil.rmtree(here)


def _together(state: State) -> None:
    from scripts.soak_parts.commands import inputs

    name = f"together:{TOGETHER}"
    if not state.todo(name):
        return
    given, here = inputs(state), state.folder / "together"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    with state.trial(name) as facts:
        begun = time.monotonic()
        words = [sys.executable, "-m", "weightsurgery", "negate", str(given / "base16"),
                 str(given / "tuned16"), "-q", "-o"]  # fmt: skip
        running = [subprocess.Popen([*words, str(here / f"out{n}")]) for n in range(TOGETHER)]
        codes = [process.wait() for process in running]
        facts["seconds"] = round(time.monotonic() - begun, 1)
        assert codes == [0] * TOGETHER, codes
        assert len({_digest(here / f"out{n}") for n in range(TOGETHER)}) == 1
        assert len(os.listdir(here)) == TOGETHER
    shutil.rmtree(here)
