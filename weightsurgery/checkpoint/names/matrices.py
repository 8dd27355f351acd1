"""Where a matrix lies among the numbers of a stored tensor, and tensors put together of such."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Block", "Matrix"]


@dataclass(frozen=True)
class Matrix:
    """A matrix somewhere in a stored tensor.

    Attributes:
        name: The stored tensor.
        first: Which of its elements is the matrix's first.
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

    def turned(self) -> Matrix:
        """The transpose, in the same place."""
        return Matrix(self.name, self.first, self.shape[::-1], self.steps[::-1])

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    @property
    def span(self) -> int:
        """Elements of the stored tensor from its first to after its last."""
        (rows, columns), (down, right) = self.shape, self.steps
        return (rows - 1) * down + (columns - 1) * right + 1 if self.numel else 0

    @property
    def in_a_row(self) -> bool:
        """Whether its elements lie one after another in the order of the rows."""
        return self.steps == (self.shape[1], 1)


@dataclass(frozen=True)
class Block:
    """Some rows of a tensor: matrices of the same height side by side.

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
        """The one matrix it consists of, if that lies in a row."""
        return self.pieces[0] if len(self.pieces) == 1 and self.pieces[0].in_a_row else None
