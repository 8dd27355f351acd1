"""Statistics of one tensor's change, in one pass over its bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightsurgery.algebra.elementwise import DTYPES, Term, combine
from weightsurgery.algebra.lowrank import participation
from weightsurgery.algebra.rounding import ChangeStats, round_to
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.naming import kind_of, layer_of
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.deferred import numpy as np
from weightsurgery.deferred import torch
from weightsurgery.errors import NonFiniteError
from weightsurgery.surgery.arithmetic import Buffers
from weightsurgery.vectors.deltas import DenseDelta, SumDelta

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["TensorDifference", "borrowed", "difference", "effective_rank", "empty"]

# Columns of the random sketch that the effective rank is estimated from: about 6 % accuracy.
PROBES = 32
# Up to this many columns the sketch is the identity, and the effective rank exact.
EXACT_PROBES = 256


@dataclass(frozen=True)
class TensorDifference:
    """One tensor's change ``T`` of the base ``W``.

    Attributes:
        name: The tensor.
        kind: Its kind.
        layer: Its layer, or None.
        shape: Its shape.
        norm: ``‖T‖``.
        relative: ``‖T‖ / ‖W‖``.
        cosine: Cosine between ``W`` and ``W + T``.
        effective_rank: Participation ratio ``‖T‖⁴_F / ‖Tᵀ T‖²_F`` of the squared singular
            values: 1 for rank one, ``k`` for ``k`` equal ones. Exact up to 256 columns, else from
            a Gaussian sketch of 32 columns (standard error about 6 %). None for non-matrices.
        sparsity: Fraction of elements that do not change.
        surviving: Fraction of the changed elements for which ``W − T``, rounded to the base's
            dtype, still differs from ``W``: what plain negation would keep.
        rank: Number of factors, if it was decomposed.
        kept: Fraction of ``‖T‖²`` that they hold.
        residual: A-posteriori error of the decomposition, relative to the largest factor.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    norm: float
    relative: float
    cosine: float
    effective_rank: float | None
    sparsity: float
    surviving: float
    rank: int | None = None
    kept: float | None = None
    residual: float | None = None


def effective_rank(sketch: Any, exact: bool) -> float:
    """Participation ratio of a matrix's squared singular values from its sketch ``Y = T Z``.

    With ``G = Yᵀ Y``: if ``Z`` is the identity, ``tr(G)² / ‖G‖²``. If it is Gaussian, the diagonal
    averages to ``‖T‖²`` and the squares off the diagonal to ``‖Tᵀ T‖²``; their ratio varies far
    less than either.

    Args:
        sketch: Shape ``(m, p)``, an array or tensor.
        exact: Whether ``Z`` is the identity.
    """
    wide = np.asarray(sketch, dtype=np.float64)
    return participation(wide.T @ wide, exact)


def empty(entry: TensorEntry) -> Floats:
    """Memory for a tensor's change: float32, of its rows and columns."""
    return np.empty((entry.rows, math.prod(entry.columns)), np.float32)


def borrowed(entry: TensorEntry) -> Floats:
    """The same, in memory that the thread's next tensor will overwrite."""
    view = _buffers.get("whole", 4 * entry.numel)
    return np.frombuffer(view, np.float32).reshape(entry.rows, -1)


def difference(
    base: Checkpoint,
    entry: TensorEntry,
    delta: SumDelta,
    whole: Floats | None = None,
    sketched: bool = True,
) -> tuple[TensorDifference, ChangeStats]:
    """Statistics of one tensor in one pass.

    Args:
        base: The base.
        entry: The tensor.
        delta: Its change.
        whole: Where to put the change: float32, of the tensor's rows and columns.
        sketched: Whether to estimate the effective rank; it is None otherwise.

    Raises:
        NonFiniteError: The base or the change holds NaN or infinity.
    """
    rows, columns = entry.rows, math.prod(entry.columns)
    probe, sketch = None, None
    if sketched and len(entry.shape) == 2 and entry.numel > 0:
        exact = columns <= EXACT_PROBES
        probe = np.eye(columns, dtype=np.float32) if exact else _probe(columns)
        sketch = np.empty((rows, probe.shape[1]), np.float32)
    read = _reader(base, entry, delta)
    stats = ChangeStats()
    for start, stop in entry.blocks():
        # A change is needed as numbers only where it is stored or multiplied.
        into = None
        if whole is not None:
            into = whole[start:stop]
        elif probe is not None:
            view = _buffers.get("change", 4 * (stop - start) * columns)
            into = np.frombuffer(view, np.float32).reshape(stop - start, columns)
        stats.merge(read(start, stop, into))
        if probe is not None and sketch is not None and into is not None:
            np.matmul(into, probe, out=sketch[start:stop])
    if not math.isfinite(stats.meant + stats.base):
        raise NonFiniteError(
            f"tensor {entry.name!r} ({base.path / entry.shard}): NaN or infinity in the base or in"
            " the change",
            f"Leave it out with --exclude '{entry.name}'.",
        )
    after = stats.base + 2 * stats.along + stats.meant
    norms = math.sqrt(stats.base * max(0.0, after))
    row = TensorDifference(
        entry.name,
        kind_of(entry.name),
        layer_of(entry.name),
        entry.shape,
        norm=math.sqrt(stats.meant),
        relative=math.sqrt(stats.meant / stats.base) if stats.base > 0 else 0.0,
        cosine=min(1.0, (stats.base + stats.along) / norms) if norms > 0 else 1.0,
        effective_rank=(
            effective_rank(sketch, columns <= EXACT_PROBES) if sketch is not None else None
        ),
        sparsity=1.0 - stats.wanted / entry.numel if entry.numel else 1.0,
        surviving=stats.surviving,
    )
    return row, stats


_buffers = Buffers()

_Read = Callable[[int, int, "Floats | None"], ChangeStats]


def _probe(columns: int) -> Floats:
    return np.random.default_rng(0).standard_normal((columns, PROBES), dtype=np.float32)


def _reader(base: Checkpoint, entry: TensorEntry, delta: SumDelta) -> _Read:
    """Reads blocks of rows: stores the change into given memory, and sums ``W``, ``T``, ``W − T``.

    Plain numbers on disk go through :func:`combine`, into memory that is used again.
    """
    dense = [(factor, term) for factor, term in delta.terms if isinstance(term, DenseDelta)]
    stored = [(factor, term, term.stored) for factor, term in dense if term.stored is not None]
    plain = len(stored) == len(delta.terms) and entry.dtype in DTYPES
    if not plain or any(
        place.entry.dtype not in DTYPES or term.limit is not None for _, term, place in stored
    ):
        return _any_reader(base, entry, delta)
    memory: dict[int, memoryview] = {}

    def read_numbers(
        order: int, checkpoint: Checkpoint, tensor: TensorEntry, start: int, stop: int
    ) -> memoryview:
        size = (stop - start) * tensor.row_bytes
        if len(memory.get(order, b"")) < size:
            memory[order] = memoryview(bytearray(size))
        view = memory[order][:size]
        checkpoint.read_into(tensor, start * tensor.row_bytes, view)
        return view

    def read(start: int, stop: int, into: Floats | None) -> ChangeStats:
        ours = read_numbers(-1, base, entry, start, stop)
        # combine() adds: W + (−T) is what negation would store.
        terms = [
            Term(
                read_numbers(order, place.checkpoint, place.entry, start, stop),
                place.entry.dtype,
                -factor,
                term.relative,
            )
            for order, (factor, term, place) in enumerate(stored)
        ]
        stats = combine(ours, entry.dtype, terms, change=into)
        if into is not None:
            np.negative(into, out=into)
        stats.along = -stats.along
        return stats

    return read


def _any_reader(base: Checkpoint, entry: TensorEntry, delta: SumDelta) -> _Read:
    stored = torch_dtype(entry.dtype)

    def read(start: int, stop: int, into: Floats | None) -> ChangeStats:
        before = base.rows(entry.name, start, stop).float()
        change = torch.zeros_like(before)
        delta.add_rows(change, start, stop, 1.0, before)
        stats = ChangeStats()
        stats.add(before, change, round_to(before - change, stored).float())
        if into is not None:
            into[:] = change.reshape(into.shape).numpy()
        return stats

    return read
