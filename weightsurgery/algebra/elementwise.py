"""Adding dense changes to weights in one pass over their bytes: no torch, no second look.

For weights ``w`` and terms ``tₖ`` with factors ``cₖ``, all in float32 and in this order::

    d = Σₖ cₖ (tₖ − w)    for terms that are fine-tuned weights, or Σₖ cₖ tₖ for differences
    w' = w + d            rounded once, to nearest (ties to even), where d ≠ 0

Every operation rounds by itself (nothing is fused), so that NumPy, torch and GPUs compute the same
bits. A small C extension does it where it could be built; NumPy does it elsewhere, some ten times
slower.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.deferred import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["COMPILED", "DTYPES", "Term", "combine", "finite"]

_compiled: Callable[..., tuple[float, float, float, float, float, int, int]] | None = None
with contextlib.suppress(ImportError):
    _compiled = import_module("weightsurgery.algebra._elementwise").combine

# Whether the C extension is there.
COMPILED = _compiled is not None

# The dtypes, by their names in safetensors, and the extension's numbers for them.
DTYPES = {"BF16": 0, "F16": 1, "F32": 2}

# Elements that NumPy takes at a time, so that its intermediate results stay in cache.
_BLOCK = 1 << 16

# Safetensors stores little-endian numbers.
_PORTABLE = sys.byteorder == "little"


@dataclass(frozen=True)
class Term:
    """A dense change of the same elements as the weights.

    Attributes:
        data: Its bytes, C-contiguous.
        dtype: One of :data:`DTYPES`.
        factor: ``c``; rounded to float32.
        relative: Whether it holds fine-tuned weights rather than differences.
    """

    data: Any
    dtype: str
    factor: float
    relative: bool


def combine(
    base: Any,
    dtype: str,
    terms: Sequence[Term],
    out: Any = None,
    change: NDArray[np.float32] | None = None,
) -> ChangeStats:
    """Add terms to weights; see the module's text.

    Args:
        base: Bytes of the weights (any buffer).
        dtype: Of the weights and of the output, one of :data:`DTYPES`.
        terms: At least one, at most 64.
        out: Writable bytes for the result; may be ``base`` itself. Not stored if None.
        change: Where to store ``d``, float32, one element per weight.

    Returns:
        Sums over the elements. NaN and infinity anywhere, also from overflow in rounding, show as
        sums that are not finite; the output is then not to be used.

    Raises:
        ValueError: Buffers of different lengths.
    """
    if _compiled is not None and _PORTABLE:
        given = tuple((t.data, DTYPES[t.dtype], t.factor, t.relative) for t in terms)
        view = None if change is None else memoryview(change.data).cast("B")
        stats = ChangeStats(*_compiled(base, DTYPES[dtype], given, out, view))
        if stats.finite:
            return stats
        # Huge numbers overflow a float32 sum. What was written is right; in place, `base` is gone.
        if out is base:
            return stats
    return _with_numpy(base, dtype, terms, out, change)


def finite(data: Any, dtype: str) -> bool:
    """Whether all numbers of a buffer are finite."""
    values = _bits(data, dtype)
    blocks = (values[at : at + _BLOCK] for at in range(0, values.size, _BLOCK))
    return all(bool(np.isfinite(_widen(block)).all()) for block in blocks)


def _with_numpy(
    base: Any,
    dtype: str,
    terms: Sequence[Term],
    out: Any = None,
    change: NDArray[np.float32] | None = None,
) -> ChangeStats:
    """The same in NumPy, block by block; the sums in float64."""
    weights = _bits(base, dtype)
    given = [_bits(term.data, term.dtype) for term in terms]
    if any(buffer.size != weights.size for buffer in given):
        raise ValueError("buffers of different lengths")
    stored = None if out is None else _bits(out, dtype)
    stats = ChangeStats()
    with np.errstate(all="ignore"):
        for start in range(0, weights.size, _BLOCK):
            at = slice(start, min(start + _BLOCK, weights.size))
            w = _widen(weights[at])
            meant: NDArray[np.float32] | None = None
            for term, buffer in zip(terms, given, strict=True):
                d = _widen(buffer[at])
                if term.relative:
                    d = d - w
                d = np.float32(term.factor) * d
                meant = d if meant is None else meant + d
            assert meant is not None
            rounded = _narrow(w + meant, dtype)
            stats.merge(_sums(w, meant, _widen(rounded) - w))
            if change is not None:
                change.reshape(-1)[at] = meant
            if stored is not None:
                stored[at] = np.where(meant != 0, rounded, weights[at])
    return stats


def _sums(w: NDArray[Any], d: NDArray[Any], r: NDArray[Any]) -> ChangeStats:
    wide = [values.astype(np.float64) for values in (w, d, r, r - d)]
    pairs = ((0, 0), (1, 1), (2, 2), (3, 3), (0, 1))
    dots = [float(np.dot(wide[i], wide[j])) for i, j in pairs]
    wanted = d != 0
    counts = (int(np.count_nonzero(mask)) for mask in (wanted, wanted & (r != 0)))
    return ChangeStats(dots[0], dots[1], dots[2], dots[3], dots[4], *counts)


def _bits(data: Any, dtype: str) -> NDArray[Any]:
    """Numbers, or bfloat16's bits as uint16, which NumPy has no dtype for."""
    kind = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[dtype]
    return np.frombuffer(data, dtype=kind)


def _widen(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _narrow(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype != "BF16":
        return values.astype("<f2" if dtype == "F16" else "<f4")
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
