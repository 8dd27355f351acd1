"""The leading factors of a matrix: exact where it is cheap, block Krylov iteration elsewhere.

Symbols as in :mod:`weightsurgery.algebra.lowrank`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from weightsurgery.algebra.lowrank import DonohoGavish, Energy, LowRank, Rank, RankRule, rank_for
from weightsurgery.deferred import torch

__all__ = ["Truncation", "truncated_svd"]

# Up to this many columns on the short side a full float64 SVD is cheap (0.3 s) and exact.
EXACT_UP_TO = 512

# Block Krylov: k + OVERSAMPLE columns, DEPTH multiplications by A Aᵀ. Measured against
# subspace iteration in METHODS and the benchmark; deeper gains nothing in float32.
OVERSAMPLE = 32
DEPTH = 5

# The full spectrum of a large matrix takes several times its memory: never two at once.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Truncation:
    """A truncated SVD and what it left out.

    Attributes:
        factors: The leading factors.
        total: Squared Frobenius norm of the whole matrix.
        residual: A-posteriori error ``maxᵢ max(‖A vᵢ − σᵢ uᵢ‖, ‖Aᵀ uᵢ − σᵢ vᵢ‖) / σ₁``; 0 for an
            exact SVD. It bounds the distance of every ``σᵢ`` to a true singular value of ``A``,
            relative to ``σ₁`` (Parlett 1998, Theorem 4.5.1, on ``[[0, A], [Aᵀ, 0]]``, up to √2).
    """

    factors: LowRank
    total: float
    residual: float

    @property
    def kept(self) -> float:
        """Fraction of the energy the factors hold, in [0, 1]; 1 for a zero matrix."""
        return min(1.0, self.factors.energy / self.total) if self.total > 0 else 1.0


def truncated_svd(
    matrix: torch.Tensor, rule: RankRule, *, seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> Truncation:
    """The leading singular triplets of a matrix.

    Small matrices (short side up to ``exact_up_to``) take a full SVD in float64. Others take
    randomised block Krylov iteration (Musco & Musco 2015, arXiv 1504.05477, Algorithm 2) with
    orthonormalised blocks and a float64 Rayleigh-Ritz step; where so many factors are wanted that
    its basis would be as wide as the matrix, the eigenvectors of the float64 Gram matrix.

    Args:
        matrix: Shape ``(m, n)``, float32, finite; on any device.
        rule: How many factors to keep.
        seed: Seed of the random start block; the result is a function of it.
        exact_up_to: Threshold for the full SVD.

    Returns:
        Float32 factors on the matrix's device; at least one factor, also of a zero matrix. A
        rank beyond ``min(m, n)`` gives ``min(m, n)``.
    """
    short = min(matrix.shape)
    total = sum(
        float(matrix[start : start + 1024].double().square().sum())
        for start in range(0, matrix.shape[0], 1024)
    )
    if total == 0:
        rule = Rank(1) if isinstance(rule, Energy) else rule
    if isinstance(rule, DonohoGavish):
        rule = Rank(_gavish_donoho_rank(matrix))
    if short <= exact_up_to:
        return Truncation(_lapack(matrix, lambda s: _count(s, rule)), total, 0.0)
    k = min(rule.k, short) if isinstance(rule, Rank) else 32
    # A Krylov basis as wide as the matrix costs more than all of it.
    while (k + OVERSAMPLE) * (DEPTH + 1) <= short:
        factors = _block_krylov(matrix, k, seed)
        if isinstance(rule, Rank):
            return _with_error(matrix, factors, total)
        if factors.energy >= rule.fraction * total:
            chosen = factors.truncated(rank_for(factors.S, rule.fraction * total))
            return _with_error(matrix, chosen, total)
        k *= 2
    return _with_error(matrix, _by_gram(matrix, lambda s: _count(s, rule)), total)


def _count(singular: torch.Tensor, rule: Rank | Energy) -> int:
    """Factors to keep of a whole spectrum; of its own sum, so that energy 1.0 is not missed."""
    if isinstance(rule, Rank):
        return min(rule.k, singular.numel())
    return rank_for(singular, rule.fraction * float(singular.double().square().sum()))


def _lapack(matrix: torch.Tensor, count: Callable[[torch.Tensor], int]) -> LowRank:
    """SVD in float64, of a small matrix."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    k = count(s)
    return LowRank(u[:, :k], s[:k], vh[:k].T).to(matrix.device, torch.float32)


def _by_gram(matrix: torch.Tensor, count: Callable[[torch.Tensor], int]) -> LowRank:
    """SVD by the float64 Gram matrix of the short side: a fraction of LAPACK's memory.

    Singular values under 1e-8 of the largest are lost, which float32 factors do not hold anyway.
    """
    transposed = matrix.shape[0] > matrix.shape[1]
    a = matrix.T if transposed else matrix
    with _ONE_AT_A_TIME:
        values, vectors = torch.linalg.eigh(_gram(a))
        s = values.flip(0).clamp_min(0).sqrt()
        k = count(s)
        s, u = s[:k], vectors[:, -k:].flip(1)
        del values, vectors
    v = _completed(_times_transposed(a, u), s)
    factors = LowRank(v, s, u) if transposed else LowRank(u, s, v)
    return factors.to(a.device, torch.float32)


def _gram(a: torch.Tensor) -> torch.Tensor:
    """``A Aᵀ`` in float64, from blocks of columns."""
    gram = torch.zeros(a.shape[0], a.shape[0], dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], 1024):
        block = a[:, start : start + 1024].double()
        gram.addmm_(block, block.T)
    return gram


def _times_transposed(a: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """``Aᵀ U`` in float64, from blocks of columns."""
    blocks = (a[:, start : start + 1024].double() for start in range(0, a.shape[1], 1024))
    return torch.cat([block.T @ u for block in blocks])


def _completed(scaled: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Orthonormal ``V`` from ``V diag(S)``: QR fills in where a singular value vanishes."""
    v = scaled / s.clamp_min(torch.finfo(torch.float64).tiny)
    if float(s[-1]) <= float(s[0]) * 1e-6:
        v, r = torch.linalg.qr(v)
        v = v * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return v


def _gavish_donoho_rank(matrix: torch.Tensor) -> int:
    m, n = matrix.shape
    beta = min(m, n) / max(m, n)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    # The median needs the whole spectrum; the Gram matrix of the short side gives it to 1e-8 σ₁.
    with _ONE_AT_A_TIME:
        values = torch.linalg.eigvalsh(_gram(matrix if m <= n else matrix.T))
    singular = values.clamp_min(0).sqrt()
    # Without noise the median is rounding: below float32 resolution there is nothing to keep.
    floor = singular[-1] * torch.finfo(torch.float32).eps
    threshold = torch.maximum(omega * singular.median(), floor)
    return max(1, int((singular > threshold).sum()))


def _block_krylov(matrix: torch.Tensor, k: int, seed: int) -> LowRank:
    transposed = matrix.shape[0] > matrix.shape[1]
    a = matrix.T if transposed else matrix  # iterate on the short side
    generator = torch.Generator("cpu").manual_seed(seed)
    start = torch.randn(a.shape[1], k + OVERSAMPLE, generator=generator, dtype=torch.float32)
    block = torch.linalg.qr(a @ start.to(a.device)).Q
    blocks = [block]
    for _ in range(DEPTH):
        block = torch.linalg.qr(a @ (a.T @ block)).Q
        blocks.append(block)
    basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    # Rayleigh-Ritz in float64: a float32 Gram matrix would lose factors under 3e-4 σ₁.
    projected = (basis.T @ a).double()
    values, vectors = torch.linalg.eigh(projected @ projected.T)
    order = torch.arange(values.numel() - 1, values.numel() - 1 - k, -1, device=a.device)
    s = values[order].clamp_min(0).sqrt()
    u = basis.double() @ vectors[:, order]
    v = projected.T @ vectors[:, order]
    v = _completed(v, s)
    factors = LowRank(v, s, u) if transposed else LowRank(u, s, v)
    return factors.to(a.device, torch.float32)


def _with_error(matrix: torch.Tensor, factors: LowRank, total: float) -> Truncation:
    """Measure what the iteration left: one multiplication by the matrix on each side."""
    top = float(factors.S[0])
    if top == 0 or not math.isfinite(top):
        return Truncation(factors, total, 0.0)
    right = (matrix @ factors.V - factors.U * factors.S).norm(dim=0).max()
    left = (matrix.T @ factors.U - factors.V * factors.S).norm(dim=0).max()
    return Truncation(factors, total, float(torch.maximum(left, right)) / top)
