"""How much memory and time the edits take on synthetic Llama-shaped checkpoints.

Runs commands on the checkpoints that checkpoints.py makes, and prints one line per command: wall
seconds, CPU seconds, peak anonymous memory, peak resident memory, and the bound on the anonymous
memory: 1.5 GB for elementwise edits, and (largest matrix in float32) x 6 + 1.5 GB where matrices
are decomposed.

    python scripts/speed/memory.py --billions 1
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from checkpoints import SHAPES, make
from measure import measure


def main() -> None:
    """Make the checkpoints, run the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--billions", choices=SHAPES, default="1")
    parser.add_argument("--dir", type=Path, help="keep the checkpoints here for another run")
    arguments = parser.parse_args()
    root = arguments.dir or Path(tempfile.mkdtemp(prefix="ws-bench-"))
    shape = SHAPES[arguments.billions]
    print(f"{arguments.billions} B checkpoints in {root} ...", file=sys.stderr)
    make(root, arguments.billions)
    ws = str(Path(sys.executable).with_name("ws"))
    base, forget, keep, out = (str(root / name) for name in ("base", "forget", "keep", "out"))
    elementwise, decomposed = 1.5e9, 1.5e9 + 6 * 4 * shape.hidden * shape.mlp
    runs = {
        "negate": (["negate", base, forget, "-o", out], elementwise),
        "diff": (["diff", base, forget], elementwise),
        "subspace 32": (["subspace", base, forget, "-o", out, "--rank", "32"], decomposed),
        "project 64": (
            ["project", base, "--forget", forget, "--keep", keep, "-o", out, "--rank", "64"],
            decomposed,
        ),
    }
    print(f"{'command':12} {'wall s':>8} {'CPU s':>8} {'anon MB':>8} {'RSS MB':>8} {'bound MB':>9}")
    for name, (command, bound) in runs.items():
        shutil.rmtree(out, ignore_errors=True)
        used = measure([ws, *command, "-q"])
        print(
            f"{name:12} {used.wall:8.1f} {used.cpu:8.1f} {used.anonymous / 1e6:8.0f}"
            f" {used.resident / 1e6:8.0f} {bound / 1e6:9.0f}",
            flush=True,
        )
    shutil.rmtree(out, ignore_errors=True)
    if arguments.dir is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
