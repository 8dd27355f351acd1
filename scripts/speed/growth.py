"""How time and memory grow with the model: measured up to 3 B parameters, worked out beyond.

Measures negate, diff, subspace (rank 32) and project (rank 64, one keep task) on synthetic
checkpoints, warm, and prints wall and processor seconds and peak memory. Then works out 8 B, 70 B
and 671 B for the speeds that are put in:

    seconds = start + max(bytes read / read + bytes written / write, processor seconds / cores)

Bytes follow from the shapes (bfloat16). Processor seconds are a start and a share per parameter (of
the decomposed matrices where there are such), fitted to what was measured: the iteration's products
take 2 m n b operations each, whatever m and n are. Memory of elementwise commands is what was
measured, for it does not grow; of the others it is a constant and a multiple of the largest matrix,
fitted to what was measured. With a GPU (--pcie, --tflops) the products are charged to it and each
matrix crosses the bus once as float32; that is arithmetic, not measured.

    python scripts/speed/growth.py --dir /tmp/checkpoints --json growth.json
    python scripts/speed/growth.py --load growth.json --read 3 --write 2 --cores 16
    python scripts/speed/growth.py --load growth.json --network 0.25 --pcie 50 --tflops 40
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import SHAPES, Shape, make
from measure import measure

# Products with a block of b columns that the iteration takes for a matrix, for the GPU's share.
PRODUCTS = {"subspace 32": 16 * 32, "project 64": 2 * 14 * 64}
COMMANDS = ("negate", "diff", "subspace 32", "project 64")


@dataclass(frozen=True)
class Size:
    """A model as the commands see it.

    Attributes:
        parameters: Of all tensors.
        linear: Of the matrices that are decomposed.
        largest: Elements of the largest of them.
    """

    parameters: int
    linear: int
    largest: int

    @classmethod
    def of(cls, shape: Shape) -> Size:
        """Of a synthetic checkpoint."""
        tensors = dict(shape.tensors())
        linear = [math.prod(s) for n, s in tensors.items() if len(s) == 2 and "embed" not in n]
        return cls(sum(map(math.prod, tensors.values())), sum(linear), max(linear))


# Llama 3 8B and 70B; a mixture of 256 experts of 2048 x 7168 in 58 of 61 layers (DeepSeek-V3).
BEYOND = {
    "8": Size(8_030_000_000, 6_979_000_000, 4096 * 14336),
    "70": Size(70_550_000_000, 68_450_000_000, 8192 * 28672),
    "671": Size(671_000_000_000, 669_100_000_000, 7168 * 18432),
}


def moved(command: str, size: Size) -> tuple[int, int]:
    """Bytes read and written: bfloat16 models; factors in float32."""
    model, matrices = 2 * size.parameters, 2 * size.linear
    return {
        "negate": (2 * model, model),
        "diff": (2 * model, 0),
        "subspace 32": (2 * matrices, 0),
        "project 64": (4 * matrices + model, model),
    }[command]


def measured(root: Path, sizes: list[str], rounds: int) -> dict[str, Any]:
    """Runs every command on every size."""
    ws = str(Path(sys.executable).with_name("ws"))
    results: dict[str, Any] = {}
    for billions in sizes:
        folder = root / billions
        print(f"checkpoints of {billions} B in {folder}", file=sys.stderr)
        make(folder, billions)
        base, forget, keep = (str(folder / name) for name in ("base", "forget", "keep"))
        out = folder / "out"
        arguments = {
            "negate": ["negate", base, forget, "-o", str(out)],
            "diff": ["diff", base, forget],
            "subspace 32": ["subspace", base, forget, "-o", str(out), "--rank", "32"],
            "project 64": ["project", base, "--forget", forget, "--keep", keep, "-o", str(out),
                           "--rank", "64"],
        }  # fmt: skip
        for command, words in arguments.items():
            runs = []
            for number in range(rounds + 1):
                shutil.rmtree(out, ignore_errors=True)
                usage = measure([ws, *words, "-q"])
                if number:  # the first one warms the page cache and the remembered digests
                    runs.append(usage)
            results.setdefault(command, {})[billions] = {
                "wall": statistics.median(run.wall for run in runs),
                "cpu": statistics.median(run.cpu for run in runs),
                "anonymous": max(run.anonymous for run in runs),
                "resident": max(run.resident for run in runs),
            }
            print(f"{billions} B {command}: {results[command][billions]}", file=sys.stderr)
        shutil.rmtree(out, ignore_errors=True)
    return results


def table(results: dict[str, Any]) -> list[str]:
    """The measurements in Markdown."""
    lines = ["| command | parameters | wall s | CPU s | anonymous MB | total MB |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for command, rows in results.items():
        for billions, row in rows.items():
            count = Size.of(SHAPES[billions]).parameters / 1e9
            lines.append(
                f"| {command} | {count:.2f} B | {row['wall']:.2f} | {row['cpu']:.2f}"
                f" | {row['anonymous'] / 1e6:.0f} | {row['resident'] / 1e6:.0f} |"
            )
    return lines


def memory(command: str, rows: dict[str, Any], size: Size) -> float:
    """Anonymous bytes: as measured, or constant + slope x largest matrix, by least squares."""
    held = [row["anonymous"] for row in rows.values()]
    if command in ("negate", "diff"):
        return max(held)
    widths = [Size.of(SHAPES[billions]).largest for billions in rows]
    if len(set(widths)) < 2:
        return max(held) * max(1.0, size.largest / max(widths))
    slope, constant = statistics.linear_regression(widths, held)
    return constant + slope * size.largest


def fitted(rows: dict[str, Any], elementwise: bool) -> tuple[float, float]:
    """Processor seconds of the start and per parameter, by least squares."""
    sizes = [Size.of(SHAPES[billions]) for billions in rows]
    units = [size.parameters if elementwise else size.linear for size in sizes]
    seconds = [row["cpu"] for row in rows.values()]
    if len(units) < 2:
        return 0.0, seconds[0] / units[0]
    slope, start = statistics.linear_regression(units, seconds)
    return max(0.0, start), slope


def beyond(results: dict[str, Any], speeds: argparse.Namespace) -> list[str]:
    """What was not measured, in Markdown."""
    heads = "command", "parameters", "read GB", "written GB", "moving", "computing", "all", "memory"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    source = speeds.network or speeds.read
    for command, rows in results.items():
        elementwise = command in ("negate", "diff")
        start, per_one = fitted(rows, elementwise)
        for billions, size in BEYOND.items():
            read, written = moved(command, size)
            moving = read / source + written / speeds.write
            cpu = per_one * (size.parameters if elementwise else size.linear) / speeds.cores
            if speeds.pcie and speeds.tflops and not elementwise:
                flops = 2 * PRODUCTS[command] * size.linear
                bus = 4 * size.linear * (2 if command == "project 64" else 1) / speeds.pcie
                cpu = max(flops / (speeds.tflops * 1e12), bus)
            lines.append(
                f"| {command} | {billions} B | {read / 1e9:,.0f} | {written / 1e9:,.0f}"
                f" | {_time(moving)} | {_time(cpu)} | {_time(start + max(moving, cpu))}"
                f" | {memory(command, rows, size) / 1e9:.1f} GB |"
            )
    return lines


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where checkpoints are made and kept")
    parser.add_argument("--sizes", default="0.1,0.2,1,3", help="billions of parameters")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep the measurements here")
    parser.add_argument("--load", type=Path, help="take measurements from there")
    parser.add_argument("--read", type=float, default=2.0, help="disk, GB/s")
    parser.add_argument("--write", type=float, default=2.0, help="disk, GB/s")
    parser.add_argument("--network", type=float, help="read over this instead, GB/s")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--pcie", type=float, help="to the GPU, GB/s")
    parser.add_argument("--tflops", type=float, help="of the GPU, float32")
    speeds = parser.parse_args()
    if speeds.load:
        results = json.loads(speeds.load.read_text())
    elif speeds.dir:
        results = measured(speeds.dir, speeds.sizes.split(","), speeds.rounds)
        if speeds.json:
            speeds.json.write_text(json.dumps(results, indent=1) + "\n")
    else:
        parser.error("give --dir to measure, or --load")
    for name in ("read", "write", "network", "pcie"):
        value = getattr(speeds, name)
        setattr(speeds, name, value * 1e9 if value else value)
    print("\n".join([*table(results), "", *beyond(results, speeds)]))


if __name__ == "__main__":
    main()
