"""The yardstick: methods of forgetting and learning, side by side on the embedded world.

The public names are loaded when first used: importing this package imports nothing heavy.
"""

from typing import TYPE_CHECKING

from weightsurgery.deferred import attributes

if TYPE_CHECKING:
    from weightsurgery.lab.bench.methods import FORGETTING, LEARNING, BenchMethod
    from weightsurgery.lab.bench.results import Bench, Outcome
    from weightsurgery.lab.bench.run import bench

__all__ = ["FORGETTING", "LEARNING", "Bench", "BenchMethod", "Outcome", "bench"]

__getattr__ = attributes(
    __name__,
    {
        "chosen": "BenchMethod",
        "methods": "FORGETTING LEARNING",
        "results": "Bench Outcome",
        "run": "bench",
    },
)
