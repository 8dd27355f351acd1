"""What spreading an edit over a cluster costs, against threads, on one machine and its disk.

Negates a synthetic checkpoint with as many threads as the cluster has processors, and on a Ray
cluster of this machine (started and warmed up before), in turn. Prints medians of seconds, tasks a
second, and the peak memory of the process that hands them out; and the system's load before and
after, for other work on the machine is in all figures. Two processes of one machine share its disk:
what several machines gain is not measured here.

    python scripts/speed/cluster.py --dir /tmp/checkpoints --billions 0.1 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import ray
from checkpoints import SHAPES, make

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.surgery import tasks
from weightsurgery.surgery.apply import apply
from weightsurgery.surgery.edits import Negate
from weightsurgery.vectors.sources import open_vector


def peak_begins() -> None:
    """Forget the peak of this process's memory so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes this process held since, libraries included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (text for text in lines if text.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def negated(root: Path, **options: Any) -> tuple[float, int]:
    """Seconds and peak memory of an edit; its output is removed."""
    out = root / "out"
    with Checkpoint.open(root / "base") as base:
        edit = Negate(open_vector(base, [str(root / "forget")]))
        peak_begins()
        begun = time.monotonic()
        apply(edit, base, out, **options)
        cost = time.monotonic() - begun, peak()
    shutil.rmtree(out)
    return cost


def count_tasks(root: Path) -> int:
    """Of an edit whose changes lie on disk as they are, at the size of stretches that is set."""
    with Checkpoint.open(root / "base") as base:
        return sum(-(-header.size // tasks.RANGE) for header in base.shards.values())


def load() -> str:
    return " ".join(f"{average:.1f}" for average in os.getloadavg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--billions", choices=SHAPES, default="0.1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processors", type=int, default=2)
    arguments = parser.parse_args()
    root, count = arguments.dir, arguments.processors
    make(root, arguments.billions)
    print(f"load before: {load()}")
    begun = time.monotonic()
    ray.init(
        "local", num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    print(f"cluster started: {time.monotonic() - begun:.1f} s")
    negated(root, workers=count)  # what inputs are is known from here on
    seconds, _ = negated(root, cluster="ray")
    print(f"first edit on it, which starts {count} processes: {seconds:.1f} s")
    ways = {"threads": (tasks.RANGE, {"workers": count})}
    for mib in (64, 2):
        ways[f"cluster, stretches of {mib} MiB"] = (mib << 20, {"cluster": "ray"})
    costs: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, (size, options) in ways.items():
            tasks.RANGE = size
            costs[way].append(negated(root, **options))
    print(f"{'':32} {'seconds':>8} {'tasks':>6} {'a second':>9} {'MB held':>8}")
    for way, (size, options) in ways.items():
        tasks.RANGE = size
        seconds = statistics.median(figure for figure, _ in costs[way])
        held = statistics.median(figure for _, figure in costs[way]) / 1e6
        begun_tasks = count_tasks(root) if options.get("cluster") else 0
        rate = f"{begun_tasks / seconds:.1f}" if begun_tasks else ""
        print(f"{way:32} {seconds:8.2f} {begun_tasks or '':>6} {rate:>9} {held:8.0f}")
    print(f"load after: {load()}")
    ray.shutdown()


if __name__ == "__main__":
    main()
