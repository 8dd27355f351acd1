"""What is held does not grow with the model: measured on the running process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import write_checkpoint

ONE = 1 << 20


def peak_anonymous(code: str) -> int:
    """Peak of the anonymous memory of a Python process that runs some code, in bytes."""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.002)
    assert process.wait() == 0, process.stderr.read().decode()
    return peak


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """436 MB each in bfloat16: fused experts, an embedding, and linear layers."""
    root = tmp_path_factory.mktemp("memory")
    shapes = {
        "model.layers.0.mlp.experts.gate_up_proj": (2, 4096, 8192),
        "model.layers.1.mlp.experts.gate_up_proj": (1, 4096, 8192),
        "model.embed_tokens.weight": (32000, 2048),
        **{f"model.layers.{i}.mlp.up_proj.weight": (4096, 2048) for i in range(6)},
    }
    for seed, name in enumerate(("base", "tuned", "keep")):
        tensors = {}
        for number, (key, shape) in enumerate(shapes.items()):
            generator = torch.Generator().manual_seed(number)
            tile = torch.randn(128, shape[-1], generator=generator) * 0.02
            generator.manual_seed(100 * seed)
            tile += seed * 0.001 * torch.randn(tile.shape, generator=generator)
            repeats = (*shape[:-2], shape[-2] // 128, 1)
            tensors[key] = tile.bfloat16().repeat(repeats).reshape(shape)
        write_checkpoint(root / name, tensors, 2)
    return root


def run(pair: Path, lines: str) -> int:
    return peak_anonymous(
        "import weightsurgery as ws\n"
        f"base = ws.Checkpoint.open({str(pair / 'base')!r})\n"
        f"tuned = ws.open_vector(base, [{str(pair / 'tuned')!r}])\n"
        f"keep = ws.open_vector(base, [{str(pair / 'keep')!r}])\n" + lines
    )


def test_negate_holds_blocks_and_project_a_few_matrices(pair, tmp_path):
    total = sum(path.stat().st_size for path in (pair / "base").glob("*.safetensors"))
    assert total > 400 * ONE
    idle = run(pair, "")
    whole = run(pair, "everything = {name: base.tensor(name) for name in base.entries}\n")
    assert whole - idle > 0.9 * total  # before: holding the model would be seen
    out = str(tmp_path / "out")
    kept = f"ws.apply(ws.Negate(tuned), base, {out!r}, workers=4)\n"
    assert run(pair, kept) - idle < 150 * ONE
    experts = "selection=ws.Selection('all-linear', exclude=('*experts*',))"
    project = "ws.Project(tuned, (keep,), ws.Rank(16))"
    projected = run(pair, f"ws.apply({project}, base, {out + '2'!r}, {experts})\n")
    largest = 4 * 4096 * 2048
    # Far less than the model in float32; the constant is what two threads' allocators retain.
    assert projected - idle < 6 * largest + 300 * ONE
    assert 6 * largest + 300 * ONE < 0.6 * 2 * total
