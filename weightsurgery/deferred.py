"""Libraries that not every command needs: torch and NumPy when first used, others if installed.

torch takes a second to load, NumPy a tenth. ``from weightsurgery.deferred import torch`` reads like
``import torch``; only names that are looked up while a module is imported (constants, default
values, aliases of types) would load it too early.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from weightsurgery.errors import WeightSurgeryError

__all__ = ["attributes", "need", "numpy", "torch"]

if TYPE_CHECKING:
    import numpy as numpy
    import torch as torch
else:

    class _Deferred:
        """Stands for a module until an attribute of it is read."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            attribute = getattr(import_module(self._name), name)
            setattr(self, name, attribute)  # the next time it is an attribute like any other
            return attribute

    numpy = _Deferred("numpy")
    torch = _Deferred("torch")


def attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose public names are loaded when first used.

    Args:
        package: Its name.
        modules: By module of it the names there, parted by spaces.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return attribute


def need(
    what: str,
    *libraries: str,
    extra: str,
    instead: str = "",
    kind: type[WeightSurgeryError] = WeightSurgeryError,
) -> None:
    """Check that libraries are installed.

    Args:
        what: What needs them, as in ``"identify trains the model"``.
        libraries: Their names on import.
        extra: The extra of this package that installs them.
        instead: The alternative without them, as in ``"save the data as JSONL"``.
        kind: The class of the error.

    Raises:
        WeightSurgeryError: One is not installed.
    """
    lacking = [name for name in libraries if find_spec(name) is None]
    if not lacking:
        return
    is_not, it = ("is not", "it") if len(lacking) == 1 else ("are not", "them")
    remedy = f"Install {it} with:  pip install 'weightsurgery[{extra}]'"
    raise kind(
        f"{what}, and {' and '.join(lacking)} {is_not} installed",
        f"{remedy}; or {instead}." if instead else remedy,
    )
