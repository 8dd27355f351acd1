"""The yardstick: methods of forgetting and learning, side by side on the embedded world.

The public names are loaded when first used: importing this package imports nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsurgery.lab.bench.methods import FORGETTING, LEARNING, BenchMethod
    from weightsurgery.lab.bench.results import Bench, Outcome
    from weightsurgery.lab.bench.run import bench

__all__ = ["FORGETTING", "LEARNING", "Bench", "BenchMethod", "Outcome", "bench"]

_HOMES = {
    "FORGETTING": "methods",
    "LEARNING": "methods",
    "BenchMethod": "methods",
    "Bench": "results",
    "Outcome": "results",
    "bench": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
