"""Parts of `ws` without its start-up: import everything, open the checkpoints, then time one call.

    python scripts/speed/in_process.py negate BASE FINETUNED OUT
    python scripts/speed/in_process.py unhashed BASE FINETUNED OUT
    python scripts/speed/in_process.py decompose BASE FORGET KEEP RANK

`unhashed` is `negate` without the output's SHA-256: what that costs. `decompose` works out the
leading factors of two task vectors, matrix by matrix and in as many threads as `ws project` does,
and throws them away: what that edit cannot do without.

Prints wall and processor seconds of the call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.surgery import ordering
from weightsurgery.surgery.apply import apply
from weightsurgery.surgery.discriminating import Project
from weightsurgery.surgery.edits import Negate
from weightsurgery.surgery.plan import worker_count
from weightsurgery.surgery.workers import results, torch_threads
from weightsurgery.vectors.sources import open_vector


def timed(call: Callable[[], object]) -> None:
    begun, cpu = time.monotonic(), time.process_time()
    call()
    print(f"timed {time.monotonic() - begun:.6f} {time.process_time() - cpu:.6f}")


def negate(base: Checkpoint, finetuned: str, out: str) -> None:
    edit = Negate(open_vector(base, [finetuned]))
    timed(lambda: apply(edit, base, out))


def unhashed(base: Checkpoint, finetuned: str, out: str) -> None:
    ordering.update_each = lambda pairs: None
    negate(base, finetuned, out)


def decompose(base: Checkpoint, forget: str, keep: str, rank: str) -> None:
    rule = Rank(int(rank))
    edit = Project(open_vector(base, [forget]), (open_vector(base, [keep]),), rule)
    chosen = Selection("all-linear").resolve(base.entries)
    names = sorted(chosen, key=lambda name: -base.entry(name).nbytes)
    cpu = torch.device("cpu")

    def one(name: str) -> None:
        edit.decompose(base, name, cpu)

    def every() -> None:
        with torch_threads(1), ThreadPoolExecutor(worker_count(edit, None)) as pool:
            results([pool.submit(one, name) for name in names])

    timed(every)


if __name__ == "__main__":
    mode, path, *rest = sys.argv[1:]
    with Checkpoint.open(path) as opened:
        {"negate": negate, "unhashed": unhashed, "decompose": decompose}[mode](opened, *rest)
