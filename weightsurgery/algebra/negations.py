"""Variants of task-vector negation that subtract a part of the vector, found by other changes.

Plain negation subtracts the whole vector: ``W − λT``. Three variants subtract less of it.

==============================  ================================================================
:func:`agreed` (NegMerge)       several vectors of one task: their mean where all signs agree
:func:`extracted` (Ext-Sub)     a vector less, row by row, the direction it shares with a good one
:func:`specific` (Ethos)        its large entries in the singular basis of the weights
==============================  ================================================================

Every function takes and gives ``(m, n)`` = (out, in) tensors, or such as their text allows, and
computes in float64; results have the dtype and device of the vector.
"""

from __future__ import annotations

from collections.abc import Sequence

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError

__all__ = ["agreed", "extracted", "specific"]

# Two unit rows whose sum is no longer than this point in opposite directions, but for the
# rounding of their float32 entries.
_OPPOSITE = 1e-6


def agreed(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """NegMerge: the mean of task vectors where all agree in sign, zero elsewhere.

    Kim, Han & Choe, arXiv 2410.05583: ``τ = mean(τ_k) · 1[sign τ_1 = … = sign τ_K]``. The vectors
    are of one task, trained under different settings. A zero has no sign, so that one vector with a
    zero makes a zero. Hence ``|τ| ≤ |mean|``, and a single vector is its own result.

    Args:
        vectors: At least one, all of one shape, any floating dtype.

    Returns:
        The same shape; dtype and device of the first.

    Raises:
        EditError: No vectors, or of different shapes.
        NonFiniteError: NaN or infinity in one of them.
    """
    if not vectors:
        raise EditError("no task vectors to merge", "Give at least one.")
    first = vectors[0]
    for vector in vectors:
        _check(vector, first.shape)
    total = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
    above, below = (
        torch.ones_like(total, dtype=torch.bool),
        torch.ones_like(total, dtype=torch.bool),
    )
    for vector in vectors:  # one at a time: there may be tens of them
        wide = vector.to(first.device, torch.float64)
        total += wide
        above &= wide > 0
        below &= wide < 0
    return torch.where(above | below, total / len(vectors), 0.0).to(first.dtype)


def extracted(vector: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Ext-Sub: each row of a vector less what it shares with the same row of a good change.

    Hu et al., arXiv 2308.08090, and the authors' code. With ``w1`` a row of the expert's change,
    ``w2`` one of the vector to be negated and ``c = unit(unit(w1) + unit(w2))`` their common
    direction, the edited row is ``w1 − α w2 + α ⟨w2, c⟩ c = w1 − α w2'``. This function returns
    ``w2' = w2 − ⟨w2, c⟩ c``.

    Let θ be the angle of ``w1`` and ``w2``. Then, for every α,

    - ``⟨w2', c⟩ = 0``: the edit keeps the expert's component along ``c``;
    - ``‖w2'‖ = ‖w2‖ sin(θ / 2)``: nothing is taken away where both point the same way, and at
      a right angle still only 71 % of the row's length;
    - the lengths of ``w1`` do not count, only its directions.

    Opposite rows have no ``c``, and neither has a zero row; they share nothing: ``w2' = w2``.

    Args:
        vector: ``w2`` in rows, ``(m, n)`` = (out, in), any floating dtype.
        expert: ``w1`` in rows, ``(m, n)``.

    Returns:
        ``w2'`` in rows, ``(m, n)``; dtype and device of ``vector``.

    Raises:
        EditError: Not matrices of one shape.
        NonFiniteError: NaN or infinity.
    """
    _check_matrix(vector)
    _check(vector, vector.shape)
    _check(expert, vector.shape)
    bad, good = vector.double(), expert.to(vector.device, torch.float64)
    common = _units(good) + _units(bad)
    length = common.norm(dim=1, keepdim=True)
    with_both = (length > _OPPOSITE) & bad.any(1, keepdim=True) & good.any(1, keepdim=True)
    common = torch.where(with_both, common / torch.where(with_both, length, 1.0), 0.0)
    return (bad - (bad * common).sum(1, keepdim=True) * common).to(vector.dtype)


def specific(vector: torch.Tensor, weights: torch.Tensor, threshold: float = 0.03) -> torch.Tensor:
    """Ethos: a vector without its small entries in the singular basis of some weights.

    Gao et al., arXiv 2403.08994. With ``W0 + ΔW_aux = U S Vᵀ`` the pretrained weights fine-tuned on
    auxiliary data, a task vector is written as ``S' = Uᵀ ΔW V``. Entries under ``threshold`` times
    the largest count as general knowledge and are dropped; the others are what is specific to the
    task.

    Where the weights are not square, ``U`` or ``V`` does not span its whole space, and the paper
    does not say what becomes of ``ΔW − U S' Vᵀ``. Here it stays: no component of the weights
    carries it. What is dropped is therefore ``U D Vᵀ`` with ``D`` the small entries of ``S'``, and

    - kept and dropped add up to ``ΔW``, and are orthogonal (in the Frobenius inner product);
    - filtering twice is filtering once (where no entry lies within rounding of the threshold);
    - threshold 0 drops nothing, and 1 all but the largest entry of ``S'``;
    - transposing both arguments transposes the result.

    Weights with equal singular values have more than one basis; the result then depends on which
    one is found.

    Args:
        vector: ``ΔW``, ``(m, n)``, any floating dtype.
        weights: ``W0 + ΔW_aux``, ``(m, n)``; a full float64 SVD of them is taken.
        threshold: In [0, 1]; the published one is 0.03.

    Returns:
        What is kept, ``(m, n)``; dtype and device of ``vector``.

    Raises:
        EditError: Not matrices of one shape, or the threshold is not in [0, 1].
        NonFiniteError: NaN or infinity.
    """
    if not 0 <= threshold <= 1:
        raise EditError(f"threshold {threshold}", "Give a share of the largest entry, in [0, 1].")
    _check_matrix(vector)
    _check(vector, vector.shape)
    _check(weights, vector.shape)
    wide = vector.double()
    u, _, vh = torch.linalg.svd(weights.to(vector.device, torch.float64), full_matrices=False)
    entries = u.T @ wide @ vh.T
    size = entries.abs()
    small = torch.where(size < threshold * size.max(), entries, 0.0)
    remaining: torch.Tensor = wide - u @ small @ vh
    return remaining.to(vector.dtype)


def _units(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length one; zero rows stay zero."""
    length = rows.norm(dim=1, keepdim=True)
    units: torch.Tensor = rows / torch.where(length > 0, length, 1.0)
    return units


def _check_matrix(matrix: torch.Tensor) -> None:
    if matrix.ndim != 2 or not matrix.numel():
        raise EditError(
            f"a tensor of shape {list(matrix.shape)} where rows are compared",
            "Leave out what is no matrix.",
        )


def _check(tensor: torch.Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise EditError(
            f"tensors of shapes {list(shape)} and {list(tensor.shape)}",
            "All must be changes of the same base.",
        )
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError("NaN or infinity in a change", "Train it again, more slowly.")
