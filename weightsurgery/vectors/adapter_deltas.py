"""Changes by adapters that are no plain ``B A``: replaced rows, DoRA, biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.deferred import torch
from weightsurgery.errors import NonFiniteError

__all__ = ["DoraDelta", "RowsDelta", "VectorDelta", "changed_rows"]


@dataclass(frozen=True)
class RowsDelta:
    """Replaced rows; the others do not change.

    Attributes:
        places: Which rows, ascending, int64.
        rows: ``rows(i, j)`` returns the rows for ``places[i:j]``, in any floating dtype.
    """

    places: torch.Tensor
    rows: Callable[[int, int], torch.Tensor]
    relative: ClassVar[bool] = True

    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`weightsurgery.vectors.deltas.Delta`."""
        first, last = torch.searchsorted(self.places, torch.tensor([start, stop])).tolist()
        if first == last:
            return
        at = (self.places[first:last] - start).to(out.device)
        new = self.rows(first, last).to(out.device, out.dtype)
        out[at] += scale * (new - base[at])


@dataclass(frozen=True)
class VectorDelta:
    """A vector that is added, such as a bias of ``B``.

    Attributes:
        values: Shape of the tensor.
    """

    values: torch.Tensor

    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`weightsurgery.vectors.deltas.Delta`."""
        out.add_(self.values[start:stop].to(out.device, out.dtype), alpha=scale)


@dataclass(frozen=True)
class DoraDelta:
    """DoRA: ``m · (W + B A) / ‖W + B A‖ − W``, row by row (Liu et al. 2024, arXiv 2402.09353).

    Attributes:
        left: Shape ``(rows, r)``; the scale is in it.
        right: Shape ``(columns, r)``.
        magnitude: ``m``, shape ``(rows,)``.
        name: The tensor, for messages.
    """

    left: torch.Tensor
    right: torch.Tensor
    magnitude: torch.Tensor
    name: str
    relative: ClassVar[bool] = True

    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`weightsurgery.vectors.deltas.Delta`."""
        left = self.left[start:stop].to(base.dtype)
        adapted = torch.addmm(base, left, self.right.T.to(base.dtype))
        norms = torch.linalg.vector_norm(adapted, dim=1, keepdim=True)
        if not bool((norms > 0).all()):
            raise NonFiniteError(
                f"tensor {self.name!r}: a row that DoRA is to rescale is all zeros",
                f"Leave the tensor as it is with --exclude '{self.name}', or check the weights.",
            )
        magnitude = self.magnitude[start:stop, None].to(base.dtype)
        out.add_(adapted.mul_(magnitude / norms).sub_(base), alpha=scale)


def changed_rows(
    base: Checkpoint, name: str, other: Checkpoint, key: str, count: int
) -> torch.Tensor:
    """Which of the first rows differ between two stored tensors.

    Rows that are the base's, rounded to the other's dtype, do not differ.

    Returns:
        Numbers of the rows, ascending, int64.
    """
    changed = [torch.empty(0, dtype=torch.int64)]
    for start, stop in base.entry(name).blocks():
        stop = min(stop, count)
        if start >= stop:
            break
        theirs = other.rows(key, start, stop)
        ours = base.rows(name, start, stop)
        same = (ours.to(theirs.dtype).double() == theirs.double()) | (
            ours.double() == theirs.double()
        )
        rows = same if same.ndim == 1 else same.all(1)
        changed.append(torch.nonzero(~rows).reshape(-1) + start)
    return torch.cat(changed)
