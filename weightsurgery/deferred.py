"""torch and NumPy, imported when they are first used: many commands need neither.

torch takes a second to load, NumPy a tenth. ``from weightsurgery.deferred import torch`` reads like
``import torch``; only names that are looked up while a module is imported (constants, default
values, aliases of types) would load it too early.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["numpy", "torch"]

if TYPE_CHECKING:
    import numpy as numpy
    import torch as torch
else:

    class _Deferred:
        """Stands for a module until a name of it is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            found = getattr(import_module(self._name), name)
            setattr(self, name, found)  # the next time it is an attribute like any other
            return found

    numpy = _Deferred("numpy")
    torch = _Deferred("torch")
