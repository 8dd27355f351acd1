"""WeightSurgery: edit model checkpoints by weight arithmetic.

Importing this package imports nothing heavy; the public names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Public name -> module that defines it.
_PUBLIC = {
    "Add": "surgery.edits",
    "Applied": "surgery.apply",
    "Checkpoint": "checkpoint.reader",
    "DonohoGavish": "algebra.lowrank",
    "EditRecord": "checkpoint.record",
    "Energy": "algebra.lowrank",
    "Learn": "surgery.discriminating",
    "LowRank": "algebra.lowrank",
    "Negate": "surgery.edits",
    "Project": "surgery.discriminating",
    "Rank": "algebra.lowrank",
    "Selection": "checkpoint.selection",
    "Storage": "surgery.apply",
    "TaskVector": "vectors.task_vector",
    "WeightSurgeryError": "errors",
    "apply": "surgery.apply",
    "discriminate": "algebra.discriminate",
    "open_vector": "vectors.sources",
    "truncated_svd": "algebra.svd",
    "verify": "checkpoint.record",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
