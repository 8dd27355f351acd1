"""An edit in memory: the model gets the weights that writing the edit would give it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from weightsurgery.algebra.rounding import compute_dtype, round_to
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.errors import NonFiniteError, UnsupportedCheckpointError
from weightsurgery.learning.parameters import parameters_of
from weightsurgery.vectors.deltas import Delta

__all__ = ["EditedInMemory"]


class EditedInMemory:
    """A base's model, some of whose weights are set to ``W + scale · T'`` and back.

    What is set is what :func:`weightsurgery.apply` would write: the same blocks in the same
    arithmetic, rounded to the stored dtype. Weights are always read from the checkpoint, so that
    nothing adds up and no copy of the model is held.

    Use as a context manager: leaving it restores every weight.

    Args:
        model: Loaded from ``base``, float32; its parameters are changed in place.
        base: Where the weights are stored.
        names: The matrices that will be set.

    Raises:
        UnsupportedCheckpointError: One of them is stored under another name, or in another shape,
            than the model has in memory.
    """

    def __init__(self, model: Any, base: Checkpoint, names: Collection[str]) -> None:
        self._base = base
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._changed: set[str] = set()
        for parameter, stored in parameters_of(model, base, names).items():
            weight = model.get_parameter(parameter)
            if len(stored) > 1 or base.entry(stored[0]).shape != tuple(weight.shape):
                raise UnsupportedCheckpointError(
                    f"{base.source.name}: {stored[0]!r} is another matrix in memory than on disk",
                    f"Leave it out with --exclude '{stored[0]}', or write edits with ws project and"
                    " score them with ws evaluate.",
                )
            self._parameters[stored[0]] = weight

    def __enter__(self) -> EditedInMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def set(self, changes: Mapping[str, Delta], scale: float) -> None:
        """Set ``W + scale · T'`` for all changes, and the base's weights everywhere else.

        Args:
            changes: By tensor, one of the names given.
            scale: Factor of all.

        Raises:
            NonFiniteError: Weights overflow the dtype they are stored in.
        """
        self._restore(self._changed - set(changes))
        for name, change in changes.items():
            self._changed.add(name)
            self._write(name, change, scale)

    def restore(self) -> None:
        """Restore every weight from the checkpoint."""
        self._restore(self._changed)

    def _restore(self, names: Collection[str]) -> None:
        for name in sorted(names):
            self._write(name, None, 0.0)
            self._changed.discard(name)

    @torch.no_grad()
    def _write(self, name: str, change: Delta | None, scale: float) -> None:
        entry, parameter = self._base.entry(name), self._parameters[name]
        stored = torch_dtype(entry.dtype)
        for start, stop in entry.blocks():
            after = self._base.rows(name, start, stop)
            if change is not None:
                before = after.to(compute_dtype(stored))
                difference = torch.zeros_like(before)
                change.add_rows(difference, start, stop, scale, before)
                after = round_to(before + difference, stored)
                if not bool(torch.isfinite(after.float()).all()):
                    raise NonFiniteError(
                        f"tensor {name!r}: the edited weights overflow {entry.dtype}",
                        "Use a smaller scale.",
                    )
            parameter[start:stop].copy_(after)
