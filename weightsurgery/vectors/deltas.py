"""One tensor's change, in rows or in factors, and weighted sums of changes.

A delta holds as little as it can: it adds the requested rows to the caller's memory.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from weightsurgery.algebra.lowrank import LowRank, RankRule, participation_of, rank_by, recompress
from weightsurgery.algebra.precision import exact_products
from weightsurgery.algebra.svd import Truncation, energy, truncated_svd
from weightsurgery.checkpoint.header import BLOCK_ELEMENTS, TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.deferred import torch
from weightsurgery.errors import NonFiniteError

__all__ = ["Delta", "DenseDelta", "FactorDelta", "StackDelta", "Stored", "SumDelta", "needs_base"]

RowReader = Callable[[int, int], "torch.Tensor"]


class Delta(Protocol):
    """One tensor's change."""

    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """``out += scale · T[start:stop]``.

        Args:
            out: Float32 (float64 for float64 weights), shape ``(stop - start, ...)``.
            start: First row.
            stop: After the last row.
            scale: Factor.
            base: The base's rows, in ``out``'s dtype and shape; not to be changed.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor on disk.

    Attributes:
        checkpoint: Where it is read from.
        entry: Its place there.
    """

    checkpoint: Checkpoint
    entry: TensorEntry


@dataclass(frozen=True)
class DenseDelta:
    """A change given as numbers: a fine-tuned tensor's rows, or a difference's.

    Attributes:
        rows: ``rows(start, stop)`` returns fresh memory in any floating dtype.
        relative: Whether the rows are weights, from which the base is still to be subtracted.
        limit: Rows from here on do not change (a longer vocabulary); None for all.
        stored: Where the rows lie on disk, for readers of bytes; None if nowhere.
    """

    rows: RowReader
    relative: bool = False
    limit: int | None = None
    stored: Stored | None = None

    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`Delta`."""
        if self.limit is not None:
            stop = min(stop, self.limit)
            if stop <= start:
                return
            out, base = out[: stop - start], base[: stop - start]
        rows = self.rows(start, stop).to(out.dtype)
        if self.relative:
            rows.sub_(base)
        if scale != 1:
            rows.mul_(scale)
        out.add_(rows)  # two roundings, as elsewhere: `alpha` would fuse them


@dataclass(frozen=True)
class FactorDelta:
    """A low-rank change ``left @ rightᵀ``, multiplied out only for the requested rows.

    Attributes:
        left: Shape ``(rows, r)``.
        right: Shape ``(columns, r)``.
    """

    left: torch.Tensor
    right: torch.Tensor

    @exact_products()
    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`Delta`."""
        block = self.left[start:stop].to(out.dtype)
        out.addmm_(block, self.right.T.to(out.dtype), alpha=scale)

    @classmethod
    def of(cls, factors: LowRank) -> FactorDelta:
        """From an SVD; the singular values go to the left factor."""
        return cls(factors.U * factors.S, factors.V)


@dataclass(frozen=True)
class StackDelta:
    """A low-rank change of each matrix of a stack.

    Attributes:
        left: Shape ``(matrices, rows, r)``.
        right: Shape ``(matrices, columns, r)``.
    """

    left: torch.Tensor
    right: torch.Tensor

    @exact_products()
    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`Delta`; rows of all matrices, one by one."""
        height = self.left.shape[1]
        for number in range(start // height, -(-stop // height)):
            first, last = max(start, number * height), min(stop, (number + 1) * height)
            rows = self.left[number, first - number * height : last - number * height]
            block = out[first - start : last - start]
            block.addmm_(rows.to(out.dtype), self.right[number].T.to(out.dtype), alpha=scale)

    @classmethod
    def of(cls, matrices: Sequence[FactorDelta]) -> StackDelta:
        """From each matrix's factors, padded with zeros to the largest rank."""
        rank = max(matrix.left.shape[1] for matrix in matrices)
        left, right = (
            torch.stack([torch.nn.functional.pad(f, (0, rank - f.shape[1])) for f in factors])
            for factors in ([e.left for e in matrices], [e.right for e in matrices])
        )
        return cls(left, right)


@dataclass(frozen=True)
class _Within:
    """A change's rows from ``first`` on, numbered from 0."""

    delta: Delta
    first: int

    @property
    def relative(self) -> bool:
        """Whether it is given as the changed weights."""
        return bool(getattr(self.delta, "relative", False))

    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`Delta`."""
        self.delta.add_rows(out, self.first + start, self.first + stop, scale, base)


@dataclass(frozen=True)
class SumDelta:
    """The weighted sum of changes of one tensor.

    Attributes:
        terms: Factors and the changes they scale; at least one.
        name: The tensor, for messages.
        label: The vector, for messages.
    """

    terms: tuple[tuple[float, Delta], ...]
    name: str = ""
    label: str = ""

    def add_rows(
        self, out: torch.Tensor, start: int, stop: int, scale: float, base: torch.Tensor
    ) -> None:
        """See :class:`Delta`."""
        for factor, delta in self.terms:
            delta.add_rows(out, start, stop, scale * factor, base)

    @property
    def relative(self) -> bool:
        """Whether a term is given as changed weights, from which the base is subtracted."""
        return any(getattr(term, "relative", False) for _, term in self.terms)

    def of_matrix(self, number: int, height: int) -> SumDelta:
        """The change of one matrix of a stack.

        Args:
            number: Which, from 0.
            height: Rows of each.
        """
        terms: list[tuple[float, Delta]] = []
        for factor, delta in self.terms:
            if isinstance(delta, StackDelta):
                terms.append((factor, FactorDelta(delta.left[number], delta.right[number])))
            else:
                terms.append((factor, _Within(delta, number * height)))
        return replace(self, terms=tuple(terms))

    def factors(self) -> LowRank | None:
        """The exact SVD from factors alone, if every term has them; None otherwise.

        Terms are added in product space: ``Σ cᵢ Lᵢ Rᵢᵀ``, never ``(Σ Lᵢ)(Σ Rᵢ)ᵀ``.
        """
        pairs: list[FactorDelta] = []
        for _, delta in self.terms:
            if not isinstance(delta, FactorDelta):
                return None
            pairs.append(delta)
        left = torch.cat(
            [c * pair.left.float() for (c, _), pair in zip(self.terms, pairs, strict=True)], 1
        )
        right = torch.cat([pair.right.float() for pair in pairs], 1)
        if left.shape[1] > min(left.shape[0], right.shape[0]):
            return None  # more factors than the matrix has rank: cheaper as a matrix
        self._check_finite(left, right)
        return recompress(left, torch.eye(left.shape[1]), right)

    def matrix(self, base: RowReader, shape: tuple[int, int]) -> torch.Tensor:
        """The whole change as float32, built block by block.

        Args:
            base: ``base(start, stop)`` returns the base's rows, in any floating dtype.
            shape: Of the matrix as stored.
        """
        return self._into(torch.empty(shape), base)

    def _into(self, out: torch.Tensor, base: RowReader) -> torch.Tensor:
        block = max(1, BLOCK_ELEMENTS // max(1, out.shape[1]))
        for start in range(0, out.shape[0], block):
            rows = out[start : start + block].zero_()
            stop = start + rows.shape[0]
            self.add_rows(rows, start, stop, 1.0, base(start, stop).float())
        return out

    def truncated(
        self,
        base: RowReader,
        shape: tuple[int, int],
        rule: RankRule,
        *,
        transposed: bool = False,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> Truncation:
        """The leading factors of the change, oriented (out, in).

        Args:
            base: Reads the base's rows; called only for changes that are not factors already.
            shape: Of the matrix as stored.
            rule: How many factors to keep.
            transposed: Whether the matrix is stored (in, out).
            device: Where to compute.
            seed: Of the randomised SVD.

        Returns:
            Factors on the CPU, float32.

        Raises:
            NonFiniteError: The change holds NaN or infinity.
        """
        exact = self.factors()
        if exact is not None:
            rank = rank_by(exact.S, exact.energy, rule)
            spread = participation_of(exact.S)
            truncation = Truncation(exact.truncated(rank), exact.energy, 0.0, spread)
        else:
            matrix = self._into(_memory.floats(*shape), base)
            total = energy(matrix)
            if not math.isfinite(total):
                raise self._not_finite()
            truncation = truncated_svd(matrix.to(device), rule, seed=seed, total=total)
        factors = truncation.factors.to("cpu")
        if transposed:
            factors = LowRank(factors.V, factors.S, factors.U)
        return replace(truncation, factors=factors)

    def _check_finite(self, *tensors: torch.Tensor) -> None:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise self._not_finite()

    def _not_finite(self) -> NonFiniteError:
        return NonFiniteError(
            f"tensor {self.name!r}: NaN or infinity in the change ({self.label}) or the base",
            f"Leave the tensor as it is with --exclude '{self.name}', or check the weights.",
        )


def needs_base(delta: Delta) -> bool:
    """Whether computing a change's rows needs the base's; not so for factors."""
    if isinstance(delta, SumDelta):
        return any(needs_base(term) for _, term in delta.terms)
    return not isinstance(delta, FactorDelta | StackDelta)


class _Memory(threading.local):
    """A reused buffer of a matrix's size for each worker thread.

    Fresh pages cost more time than filling them. The buffer ends with the thread; the main thread,
    which outlives a call, keeps none.
    """

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def floats(self, rows: int, columns: int) -> torch.Tensor:
        """A float32 matrix, which overwrites this thread's previous one."""
        if threading.current_thread() is threading.main_thread():
            return torch.empty(rows, columns)
        if self._buffer is None or self._buffer.numel() < rows * columns:
            self._buffer = None  # not both at once
            self._buffer = torch.empty(rows * columns)
        return self._buffer[: rows * columns].view(rows, columns)


_memory = _Memory()
