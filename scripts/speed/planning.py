"""What planning takes of a model of 671 B parameters: time, and memory against tensors.

Plans edits of the checkpoints that headers.py makes, which take a few megabytes of disk. Then the
same with an eighth, a quarter and half of the layers, for what the process holds that hands an
edit's tasks to a cluster: the plan, all tasks, all that comes back of them (put in by hand, nothing
is computed) and the record; and for a process that does tasks, before its first. Ray's own memory
is not in it.

    python scripts/speed/planning.py --dir /tmp/headers
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from headers import make
from measure import measure

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.surgery.as_checkpoint import Storage, _statistics
from weightsurgery.surgery.changes import DenseChange, rewritten
from weightsurgery.surgery.discriminating import Project
from weightsurgery.surgery.edit import Edit, Run
from weightsurgery.surgery.edits import Negate
from weightsurgery.surgery.performing import performer
from weightsurgery.surgery.plan import plan_checkpoint
from weightsurgery.surgery.tasks import RANGE, Collected, Done, Job, Task, tasks_of
from weightsurgery.surgery.windows import WINDOW, merged
from weightsurgery.vectors.sources import open_vector


class Written:
    """What the writer of an output holds of finished tensors, without an output."""

    def __init__(self, job: Job) -> None:
        self.entries = {entry.name: entry for header in job.plan.shards for entry in header.entries}
        self.done: dict[str, dict[str, Any]] = {}

    def finish(self, name: str, facts: dict[str, Any], **_: Any) -> None:
        """See :class:`weightsurgery.checkpoint.writer.CheckpointWriter`."""
        self.done[name] = facts


def came_back(job: Job, tasks: list[Task]) -> list[Done]:
    """What would come back of each task."""
    stretches: dict[tuple[str, int], list[tuple[str, int, ChangeStats]]] = {}
    for name, change in (job.changes or {}).items():
        if isinstance(change, DenseChange):
            entry = change.entry
            for number in range(entry.start // WINDOW, -(-entry.stop // WINDOW)):
                where = (entry.shard, number * WINDOW // RANGE)
                stretches.setdefault(where, []).append((name, number, sums()))
    found = []
    for task in tasks:
        if task.tensor is None:
            stats = stretches.pop((task.shard, task.start // RANGE), ())
            found.append(Done(task, "0" * 64, stats=stats))
        else:
            facts = merged([sums()], job.plan.edited[task.tensor], {"rank": 64})
            found.append(Done(task, "0" * 64, facts=facts))
    return found


def sums() -> ChangeStats:
    return ChangeStats(1.0, 1.0, 1.0, 0.0, 0.1, 1, 1)


def edit_of(base: Checkpoint, name: str, root: Path) -> Edit:
    vector = open_vector(base, [str(root / name)])
    return Negate(vector) if name == "tuned" else Project(vector, (vector,), Rank(16))


def hand_out(root: Path, vector: str, packed: Path) -> dict[str, float]:
    """Do all that the process does which hands out tasks; seconds of its steps."""
    begun, steps = time.process_time(), {}

    def step(name: str) -> None:
        nonlocal begun
        steps[name] = time.process_time() - begun
        begun = time.process_time()

    base = Checkpoint.open(root / "base")
    edit, storage = edit_of(base, vector, root), Storage()
    step("open")
    selection = Selection("all-linear" if edit.factors else "all")
    plan = plan_checkpoint(edit, base, root / "out", storage, Run(selection))
    step("plan")
    changes = rewritten(edit, base, plan, storage)
    step("changes")
    paths = {header.shard: root / header.shard for header in plan.shards}
    job = Job(edit, base, plan, storage, "cpu", changes, root, paths, (root / "mark", "run"), ())
    packed.write_bytes(job.packed())
    step("pack")
    tasks = tasks_of(job, ())
    step("list")
    written = Written(job)
    collected = Collected(job, written)
    backs = came_back(job, tasks)
    begun = time.process_time()
    for each in backs:
        collected.add(each)
    step("collect")
    tensors, _ = _statistics(edit, base, plan, written.done)
    json.dumps(tensors)
    step("record")
    return {"tensors": len(base.entries), "tasks": len(tasks), **steps}


def do_nothing(root: Path, packed: Path) -> dict[str, float]:
    """Get ready for tasks, as a process on a node."""
    (root / "mark").write_text("run")
    begun = time.process_time()
    performer("run", {}, packed.read_bytes)
    return {"unpack": time.process_time() - begun}


def run(*words: str) -> tuple[Any, float]:
    """What one of the two said, and its peak memory."""
    usage = measure([sys.executable, __file__, *words])
    return json.loads(usage.output), usage.anonymous / 1e6


def plans(root: Path) -> dict[str, list[str]]:
    base, tuned, factors = (str(root / name) for name in ("base", "tuned", "factors"))
    dry = ["-o", str(root / "out"), "--dry-run"]
    return {
        "inspect": ["inspect", base],
        "inspect, float8": ["inspect", str(root / "float8")],
        "negate a fine-tune": ["negate", base, tuned, *dry],
        "negate a saved vector": ["negate", base, factors, *dry],
        "negate an adapter": ["negate", base, str(root / "adapter"), *dry],
        "negate a fine-tune of float8": ["negate", str(root / "float8"), tuned, "--dequantize",
                                         "--allow-unrelated", *dry],
        "project": ["project", base, "--forget", factors, "--keep", tuned, *dry],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the headers go")
    parser.add_argument("--parts", default="8,4,2,1", help="one in so many of the layers")
    parser.add_argument("--vector", help=argparse.SUPPRESS)
    parser.add_argument("--packed", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root, packed = arguments.dir, arguments.packed
    if packed is not None:
        vector = arguments.vector
        said = hand_out(root, vector, packed) if vector else do_nothing(root, packed)
        print(json.dumps(said))
        return
    parts = [int(each) for each in arguments.parts.split(",")]
    for part in parts:
        make(root / str(part), part)
    ws = [sys.executable, "-m", "weightsurgery"]
    print("| command | wall s | CPU s | MB |\n|---|---|---|---|")
    for name, words in plans(root / str(parts[-1])).items():
        usage = measure([*ws, *words, "-q"])
        row = f"{usage.wall:.1f} | {usage.cpu:.1f} | {usage.anonymous / 1e6:.0f}"
        print(f"| {name} | {row} |", flush=True)
    steps = ("open", "plan", "changes", "pack", "list", "collect", "record")
    heads = ("edit", "tensors", "tasks", *steps, "MB", "packed MB", "unpack", "a worker's MB")
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for vector in ("tuned", "factors"):
        for part in parts:
            of = root / str(part)
            file = of / "packed"
            said, held = run("--dir", str(of), "--packed", str(file), "--vector", vector)
            ready, worker = run("--dir", str(of), "--packed", str(file))
            row = [f"{said['tensors']:,}", f"{said['tasks']:,}"]
            row += [f"{said[name]:.1f}" for name in steps]
            row += [f"{held:.0f}", f"{file.stat().st_size / 1e6:.0f}"]
            row += [f"{ready['unpack']:.1f}", f"{worker:.0f}"]
            print(
                f"| {'negate' if vector == 'tuned' else 'project'} | {' | '.join(row)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
