"""torch, imported when it is first used: it takes a second, and many commands never need it.

``from weightsurgery.deferred import torch`` reads like ``import torch``. Only names that are
looked up while a module is imported (constants, default values, aliases of types) would load it
too early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["torch"]

if TYPE_CHECKING:
    import torch as torch
else:

    class _Deferred:
        """Stands for the module until a name of it is asked for."""

        def __getattr__(self, name: str) -> Any:
            import torch as module

            found = getattr(module, name)
            setattr(self, name, found)  # the next time it is an attribute like any other
            return found

    torch = _Deferred()
