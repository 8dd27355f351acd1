"""What each process of a training under FSDP2 holds, for models of 8, 70 and 405 B parameters.

By the formulas of ``--dry-run``, from Llama 3's shapes alone. Activations come on top. Nothing of
it was run at these sizes.

    python scripts/speed/shared.py --processes 8 64 512
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sizes import LLAMAS, llama

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.learning.keep_span import SUMS
from weightsurgery.unlearning.shared_plan import Shares, shared_memory

SHAPES = {"8": (4096, 14336, 32, 1024, 128256, 4), **LLAMAS}


def trainings(names: list[str], shape: tuple[int, ...]) -> Iterator[tuple[str, Shares]]:
    """What is trained, by its command."""
    hidden, mlp, layers, *_ = shape
    yield "`identify --mode joint --lora-rank 32`", Shares(names, 32)
    yield "`unlearn --method npo --lora-rank 32`", Shares(names, 32, 1)
    yield "`identify --mode joint`", Shares(names)
    yield "`unlearn --method npo`", Shares(names, None, 2)
    widths = [hidden, hidden, hidden, mlp] * layers
    sums = min(max(SUMS, 12 * mlp**2), sum(8 * width**2 for width in widths))
    confined = Shares(names, None, 2, False, widths, sums + 28 * mlp**2)
    yield "`project --objective strangers`", confined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[8, 64, 512])
    counts = parser.parse_args().processes
    heads = ("B", "command", *(f"GB each of {count}" for count in counts), "GB by the first's host")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for billions, shape in SHAPES.items():
        entries = {
            name: TensorEntry(name, dtype, size, "", 0, 0) for name, dtype, size in llama(shape)
        }
        names = list(Selection("all-linear").resolve(entries))
        for what, shares in trainings(names, shape):
            held = shared_memory(entries, shares, counts)
            sizes = [f"{each.device / 1e9:,.1f}" for each in held]
            print(f"| {' | '.join((billions, what, *sizes, f'{held[0].host / 1e9:,.1f}'))} |")


if __name__ == "__main__":
    main()
