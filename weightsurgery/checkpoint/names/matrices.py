"""A matrix as a strided view into a stored tensor, and tensors assembled from such views."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Block", "Matrix"]


@dataclass(frozen=True)
class Matrix:
    """A matrix somewhere in a stored tensor.

    Attributes:
        name: The stored tensor.
        first: Offset of the matrix's first element in it.
        shape: Rows and columns.
        steps: Elements from one row to the next, and from one column to the next.
    """

    name: str
    first: int
    shape: tuple[int, int]
    steps: tuple[int, int]

    @classmethod
    def whole(cls, name: str, shape: tuple[int, ...]) -> Matrix:
        """All of a tensor, row by row."""
        columns = shape[-1] if len(shape) > 1 else 1
        rows = math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)
        return cls(name, 0, (rows, columns), (columns, 1))

    def transposed(self) -> Matrix:
        """The transpose, a view of the same elements."""
        return Matrix(self.name, self.first, self.shape[::-1], self.steps[::-1])

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    @property
    def span(self) -> int:
        """Number of elements of the stored tensor from the matrix's first to its last."""
        (rows, columns), (down, right) = self.shape, self.steps
        return (rows - 1) * down + (columns - 1) * right + 1 if self.numel else 0

    @property
    def contiguous(self) -> bool:
        """Whether its elements are contiguous, row by row."""
        return self.steps == (self.shape[1], 1)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a tensor: matrices of the same height side by side.

    Attributes:
        pieces: From left to right; at least one.
    """

    pieces: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pieces[0].shape[0], sum(piece.shape[1] for piece in self.pieces)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    @property
    def run(self) -> Matrix | None:
        """The one matrix it consists of, if that is contiguous."""
        return self.pieces[0] if len(self.pieces) == 1 and self.pieces[0].contiguous else None
