"""How much memory and time the edits take on synthetic Llama-shaped checkpoints.

Makes a bfloat16 base of about a given size and two fine-tunes of it (low rank plus noise), runs
commands on them, and samples the anonymous memory of each process. Prints one line per command:
wall seconds, CPU seconds, peak anonymous memory, peak resident memory, and the bound on the
anonymous memory: 1.5 GB for elementwise edits, and (largest matrix in float32) x 6 + 1.5 GB
where matrices are decomposed.

    python scripts/bench/memory.py --billions 1
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

# Hidden size, MLP width, layers, vocabulary: about 1.2 and 3.2 billion parameters.
SHAPES = {"0.2": (1024, 2816, 10, 32000), "1": (2048, 8192, 16, 128256),
          "3": (3072, 8192, 28, 128256)}  # fmt: skip


def tensors_of(layer: int | None, shape: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer, or of what is outside the layers."""
    hidden, mlp, _, vocabulary = shape
    if layer is None:
        return {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    at = f"model.layers.{layer}"
    return {
        f"{at}.self_attn.q_proj.weight": (hidden, hidden),
        f"{at}.self_attn.k_proj.weight": (hidden // 4, hidden),
        f"{at}.self_attn.v_proj.weight": (hidden // 4, hidden),
        f"{at}.self_attn.o_proj.weight": (hidden, hidden),
        f"{at}.mlp.gate_proj.weight": (mlp, hidden),
        f"{at}.mlp.up_proj.weight": (mlp, hidden),
        f"{at}.mlp.down_proj.weight": (hidden, mlp),
        f"{at}.input_layernorm.weight": (hidden,),
    }


def make(root: Path, shape: tuple[int, int, int, int]) -> None:
    """Write base, forget and keep, shard by shard, so that making them needs little memory."""
    layers: list[int | None] = [None, *range(shape[2])]
    groups = [layers[:1], *(layers[at : at + 6] for at in range(1, len(layers), 6))]
    maps: dict[str, dict[str, str]] = {"base": {}, "forget": {}, "keep": {}}
    for number, group in enumerate(groups, 1):
        parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in maps}
        for layer in group:
            for name, size in tensors_of(layer, shape).items():
                weight = torch.randn(size) * 0.02
                parts["base"][name] = weight.bfloat16()
                for tune in ("forget", "keep"):
                    change = torch.randn(size) * 2e-4
                    if len(size) == 2:
                        change += torch.randn(size[0], 8) @ torch.randn(8, size[1]) * 5e-4
                    parts[tune][name] = (weight + change).bfloat16()
        for tune, tensors in parts.items():
            shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            (root / tune).mkdir(parents=True, exist_ok=True)
            save_file(tensors, root / tune / shard, {"format": "pt"})
            maps[tune] |= dict.fromkeys(tensors, shard)
    for tune, weight_map in maps.items():
        index = {"metadata": {}, "weight_map": weight_map}
        (root / tune / "model.safetensors.index.json").write_text(json.dumps(index))
        (root / tune / "config.json").write_text('{"model_type": "llama", "dtype": "bfloat16"}')


def measure(command: list[str]) -> tuple[float, float, int, int]:
    """Wall and CPU seconds, peak anonymous and peak resident bytes of a command."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    anonymous = resident = 0
    cpu = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            stat = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            break
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "RssAnon" in fields:
            anonymous = max(anonymous, int(fields["RssAnon"].split()[0]) * 1024)
            resident = max(resident, int(fields["VmHWM"].split()[0]) * 1024)
            cpu = (int(stat[11]) + int(stat[12])) / 100
        time.sleep(0.01)
    if process.wait():
        sys.exit((process.stderr.read() if process.stderr else b"").decode())
    return time.monotonic() - begun, cpu, anonymous, resident


def main() -> None:
    """Make the checkpoints, run the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--billions", choices=SHAPES, default="1")
    parser.add_argument("--dir", type=Path, help="keep the checkpoints here for another run")
    arguments = parser.parse_args()
    root = arguments.dir or Path(tempfile.mkdtemp(prefix="ws-bench-"))
    shape = SHAPES[arguments.billions]
    largest = 4 * max(shape[0] * shape[1], 1)
    if not (root / "keep/config.json").is_file():
        print(f"making {arguments.billions} B checkpoints in {root}", file=sys.stderr)
        make(root, shape)
    ws = str(Path(sys.executable).with_name("ws"))
    base, forget, keep = (str(root / name) for name in ("base", "forget", "keep"))
    runs = {
        "negate": (["negate", base, forget, "-o", str(root / "out")], 1.5e9),
        "diff": (["diff", base, forget], 1.5e9),
        "subspace 32": (
            ["subspace", base, forget, "-o", str(root / "out"), "--rank", "32"],
            6 * largest + 1.5e9,
        ),
        "project 64": (
            ["project", base, "--forget", forget, "--keep", keep, "-o", str(root / "out"),
             "--rank", "64"],
            6 * largest + 1.5e9,
        ),
    }  # fmt: skip
    print(f"{'command':12} {'wall s':>8} {'CPU s':>8} {'anon MB':>8} {'RSS MB':>8} {'bound MB':>9}")
    for name, (command, bound) in runs.items():
        shutil.rmtree(root / "out", ignore_errors=True)
        wall, cpu, anonymous, resident = measure([ws, *command, "-q"])
        print(f"{name:12} {wall:8.1f} {cpu:8.1f} {anonymous / 1e6:8.0f} {resident / 1e6:8.0f}"
              f" {bound / 1e6:9.0f}", flush=True)  # fmt: skip
    if arguments.dir is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
