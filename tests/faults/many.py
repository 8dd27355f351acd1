"""A checkpoint of very many tensors, each of which is hardly one: of no dimension, empty, or one.

``python -m tests.faults.many COUNT FOLDER`` measures what commands make of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from weightsurgery.checkpoint.layout import encode_header

__all__ = ["COMMANDS", "measured", "write_many"]

SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 3), (1, 1))

COMMANDS = {
    "inspect": ["inspect", "base", "--json"],
    "diff": ["diff", "base", "tuned", "--json"],
    "negate": ["negate", "base", "tuned", "-o", "out", "--json"],
}


def write_many(place: Path, count: int, value: float) -> Path:
    """Tensors of all of the shapes in turn, in two shards, every element of this value."""
    place.mkdir(parents=True)
    names = [f"layers.{n}.norm.weight" for n in range(count)]
    middle = count // 2
    weight_map = {}
    for number, part in enumerate((range(middle), range(middle, count)), 1):
        shapes = [SHAPES[n % len(SHAPES)] for n in part]
        described = [(names[n], "F32", shape) for n, shape in zip(part, shapes, strict=True)]
        file = f"model-{number:05d}-of-00002.safetensors"
        elements = sum(0 not in shape for shape in shapes)
        data = torch.full((elements,), value).numpy().tobytes()
        (place / file).write_bytes(encode_header(described, {"format": "pt"}) + data)
        weight_map |= dict.fromkeys((names[n] for n in part), file)
    index = {"metadata": {}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "config.json").write_text('{"model_type": "llama"}')
    return place


# From a process of its own: the most that one held begins with what its parent held.
_LAUNCH = """
import json, resource, subprocess, sys, time
begun = time.monotonic()
done = subprocess.run([sys.executable, "-m", "weightsurgery", *sys.argv[1:]],
                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps([done.returncode, done.stdout, time.monotonic() - begun, held]))
"""


def measured(words: list[str], place: Path) -> tuple[int, str, float, float]:
    """Run ``ws`` there: exit status, stdout, seconds and the most megabytes it held."""
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, *words], cwd=place, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    code, said, seconds, held = json.loads(done.stdout)
    return code, said, seconds, held


if __name__ == "__main__":
    here = Path(sys.argv[2])
    for name, value in (("base", 1.0), ("tuned", 1.5)):
        write_many(here / name, int(sys.argv[1]), value)
    for name, words in COMMANDS.items():
        code, _, seconds, megabytes = measured(words, here)
        print(f"{name}: {code}, {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
