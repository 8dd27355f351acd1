"""Singular values of a change, matrix by matrix: all of them of factors, else the leading ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.header import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.surgery.workers import device_for, in_order, torch_threads
from weightsurgery.vectors.deltas import needs_base
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["ELEMENTS", "LEADING", "Spectra", "leading_spectra"]

LEADING = 64
"""Singular values of a matrix that is not held in factors, at most."""

ELEMENTS = 1 << 30
"""Elements of such matrices that are read and decomposed in one call, at most."""

_WORKERS = 2  # whole matrices are held


@dataclass(frozen=True)
class Spectra:
    """Singular values of a change's matrices.

    Attributes:
        values: Singular values by matrix name, descending.
        whole: The matrices of which these are all nonzero singular values.
        left_out: Number of matrices left out, for the bound.
        residual: How far a value lies from a true singular value of its matrix at most, as a share
            of the largest; see :class:`weightsurgery.algebra.svd.Truncation`.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    left_out: int = 0
    residual: float = 0.0


def leading_spectra(
    base: Checkpoint,
    vector: TaskVector,
    sizes: Mapping[str, float],
    *,
    leading: int = LEADING,
    elements: int = ELEMENTS,
    progress: Callable[[str, int, int], None] | None = None,
) -> Spectra:
    """Singular values of the matrices of a change, largest changes first.

    A change that is held in factors ``B A``, as an adapter's, gives all its values exactly, from a
    core of rank times rank: no matrix is built. Others are built one by one and take
    :func:`weightsurgery.algebra.svd.truncated_svd`.

    Args:
        base: The base.
        vector: The change.
        sizes: The tensors, with the size of their changes in any unit.
        leading: Values of a matrix that is built, at most.
        elements: Elements of all the matrices that are built, at most.
        progress: Called as ``progress(stage, done, total)`` in bytes.

    Raises:
        WeightSurgeryError: See :mod:`weightsurgery.errors`.
    """
    chosen: list[tuple[TensorEntry, bool]] = []
    budget, left_out = elements, 0
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        entry = base.entries.get(name)
        if entry is None or len(entry.shape) != 2 or not entry.numel or not sizes[name] > 0:
            continue
        delta = vector.at(name)
        if delta is None:
            continue
        dense = needs_base(delta)
        if dense and entry.numel > budget:
            left_out += 1
            continue
        budget -= entry.numel if dense else 0
        chosen.append((entry, dense))

    def spectrum_of(item: tuple[TensorEntry, bool]) -> tuple[list[float], float]:
        entry, dense = item
        rows, columns = entry.shape
        delta = vector.at(entry.name)
        assert delta is not None
        rule = Rank(min(leading, rows, columns) if dense else min(rows, columns))
        device = device_for("auto", decomposes=True)
        reader = partial(base.rows, entry.name)
        truncation = delta.truncated(reader, (rows, columns), rule, device=device)
        return truncation.factors.S.tolist(), truncation.residual

    values, residual = {}, 0.0
    done, total = 0, sum(entry.nbytes for entry, _ in chosen)
    with torch_threads(1):
        for (entry, _), (singular_values, error) in zip(
            chosen, in_order(spectrum_of, chosen, _WORKERS), strict=True
        ):
            values[entry.name], residual = singular_values, max(residual, error)
            done += entry.nbytes
            if progress is not None:
                progress("singular values", done, total)
    whole = frozenset(
        entry.name for entry, dense in chosen if not dense or min(entry.shape) <= leading
    )
    return Spectra(values, whole, left_out, residual)
