"""The leading factors of a matrix: exact where it is cheap, block Krylov iteration elsewhere.

Symbols as in :mod:`weightsurgery.algebra.lowrank`.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from weightsurgery.algebra.krylov import TOLERANCE, Leading, completed, leading
from weightsurgery.algebra.lowrank import (
    DonohoGavish,
    Energy,
    LowRank,
    Rank,
    RankRule,
    participation_of,
    rank_for,
)
from weightsurgery.algebra.precision import exact_products
from weightsurgery.deferred import torch

__all__ = ["EXACT_UP_TO", "Truncation", "energy", "truncated_svd"]

# Up to this many columns on the short side a full float64 SVD is cheap (50 ms) and exact.
EXACT_UP_TO = 256

# Matrices up to this many elements take a millisecond per iteration: iterated to float32 accuracy.
_SMALL = 1 << 19
_SMALL_TOLERANCE = 1e-9

# Under an energy rule: where the spectrum is flat, a little energy makes many factors.
_FEWEST = 20
# Of a sum of squares in float32.
_ROUNDING = 1e-6

# Elements whose squares are summed at a time.
_BLOCK = 1 << 20

# The full spectrum of a large matrix takes several times its memory: never two at once.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Truncation:
    """A truncated SVD and its error.

    Attributes:
        factors: The leading factors.
        total: Squared Frobenius norm of the whole matrix.
        residual: A-posteriori error ``maxᵢ max(‖A vᵢ − σᵢ uᵢ‖, ‖Aᵀ uᵢ − σᵢ vᵢ‖) / σ₁``; 0 for an
            exact SVD. It bounds the distance of every ``σᵢ`` to a true singular value of ``A``,
            relative to ``σ₁`` (Parlett 1998, Theorem 4.5.1, on ``[[0, A], [Aᵀ, 0]]``, up to √2).
        effective_rank: Participation ratio ``‖A‖⁴_F / ‖Aᵀ A‖²_F`` of the whole matrix: exact where
            the whole spectrum was computed, else from the iteration's Gaussian start (at least 32
            columns: standard error about 6 %). None where it was not computed.
    """

    factors: LowRank
    total: float
    residual: float
    effective_rank: float | None = None

    @property
    def kept(self) -> float:
        """Fraction of the energy the factors hold, in [0, 1]; 1 for a zero matrix."""
        return min(1.0, self.factors.energy / self.total) if self.total > 0 else 1.0


@exact_products()
def truncated_svd(
    matrix: torch.Tensor,
    rule: RankRule,
    *,
    seed: int = 0,
    exact_up_to: int = EXACT_UP_TO,
    tolerance: float = TOLERANCE,
    total: float | None = None,
) -> Truncation:
    """The leading singular triplets of a matrix.

    Small matrices (short side up to ``exact_up_to``) take a full SVD in float64. Others take
    randomised block Krylov iteration (see :mod:`weightsurgery.algebra.krylov`) with a float64
    Rayleigh-Ritz step; where so many factors are wanted, or their values are so close, that its
    basis would be as wide as the matrix, the eigenvectors of the float64 Gram matrix.

    Args:
        matrix: Shape ``(m, n)``, float32, finite; on any device. Not changed.
        rule: How many factors to keep.
        seed: Seed of the random start block; the result is a function of it.
        exact_up_to: Threshold for the full SVD.
        tolerance: The factors hold the energy of the best of their rank but for this fraction,
            by an estimate of the iteration. Matrices under half a million elements are iterated
            to float32 accuracy.
        total: The matrix's :func:`energy`, if it is known.

    Returns:
        Float32 factors on the matrix's device; at least one factor, also of a zero matrix. A
        rank beyond ``min(m, n)`` gives ``min(m, n)``.

    Example::

        >>> svd = truncated_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), Rank(2))
        >>> svd.factors.S, round(svd.kept, 3)  # (9 + 4) / 14 of the energy
        (tensor([3., 2.]), 0.929)
    """
    short = min(matrix.shape)
    total = energy(matrix) if total is None else total
    if total == 0:
        rule = Rank(1) if isinstance(rule, Energy) else rule
    if isinstance(rule, DonohoGavish):
        rule = Rank(_gavish_donoho_rank(matrix))
    if short <= exact_up_to:
        result = _lapack(matrix, rule)
    elif total == 0:
        result = _zero_factors(matrix, _count(matrix.new_zeros(short), rule))
    else:
        result = _large(matrix, rule, total, seed, tolerance)
    return Truncation(result.factors, total, result.residual, result.effective_rank)


def _large(
    matrix: torch.Tensor, rule: Rank | Energy, total: float, seed: int, tolerance: float
) -> Leading:
    # Squares of norms far from 1 leave float32's range; a power of two changes no digit.
    scale = 1.0
    if not 1e-18 < total < 1e18:
        scale = 2.0 ** max(-126, min(126, -round(math.log2(total) / 2)))
        matrix = matrix * scale
    if matrix.numel() <= _SMALL:
        tolerance = min(tolerance, _SMALL_TOLERANCE)
    result = _iterated(matrix, rule, total * scale**2, seed, tolerance)
    if result is None:
        result = _by_gram(matrix, rule)
    factors = LowRank(result.factors.U, result.factors.S / scale, result.factors.V)
    return Leading(factors, result.residual, result.effective_rank)


def energy(matrix: torch.Tensor) -> float:
    """Squared Frobenius norm of a float32 matrix; NaN or infinite where an element is."""
    if matrix.device.type != "cpu":
        return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    flat = (matrix if matrix.is_contiguous() else matrix.T).reshape(-1)
    return math.fsum(_energy(flat[at : at + _BLOCK]) for at in range(0, flat.numel(), _BLOCK))


def _energy(block: torch.Tensor) -> float:
    """From norms of rows in float32, seven times as fast, unless their squares leave its range."""
    norms = torch.linalg.vector_norm(block.view(-1, math.gcd(block.numel(), 4096)), dim=1)
    if float(norms.min()) > 1e-15 and float(norms.max()) < math.inf:
        norms = norms.double()
        return float(torch.dot(norms, norms))
    return float(block.double().square().sum())


def _iterated(
    matrix: torch.Tensor, rule: Rank | Energy, total: float, seed: int, tolerance: float
) -> Leading | None:
    """By block Krylov iteration; None where that costs more than all of the matrix."""
    if isinstance(rule, Rank):
        return leading(matrix, rule.k, total, seed=seed, tolerance=tolerance)
    k, enough = 32, rule.fraction * total * (1 - _ROUNDING)
    while True:
        result = leading(matrix, k, total, seed=seed, tolerance=tolerance / _FEWEST, enough=enough)
        if result is None:
            return None
        held, last = result.factors.energy, float(result.factors.S[-1]) ** 2
        if held >= enough * (1 - _ROUNDING):
            return result
        # No further factor is larger than the last one, which may yet grow by half.
        k = max(2 * k, k + min(matrix.shape[1], int((enough - held) / (2 * last)) if last else 0))


def _zero_factors(matrix: torch.Tensor, k: int) -> Leading:
    """Factors of a zero matrix."""
    eyes = [torch.eye(side, k, device=matrix.device) for side in matrix.shape]
    return Leading(LowRank(eyes[0], torch.zeros(k, device=matrix.device), eyes[1]), 0.0, 0.0)


def _count(singular: torch.Tensor, rule: Rank | Energy) -> int:
    """Factors to keep of a whole spectrum; of its own sum, so that energy 1.0 is not missed."""
    if isinstance(rule, Rank):
        return min(rule.k, singular.numel())
    return rank_for(singular, rule.fraction * float(singular.double().square().sum()))


def _lapack(matrix: torch.Tensor, rule: Rank | Energy) -> Leading:
    """SVD in float64, of a small matrix."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    k = _count(s, rule)
    factors = LowRank(u[:, :k], s[:k], vh[:k].T).to(matrix.device, torch.float32)
    return Leading(factors, 0.0, participation_of(s))


def _by_gram(matrix: torch.Tensor, rule: Rank | Energy) -> Leading:
    """SVD by the float64 Gram matrix of the short side: a fraction of LAPACK's memory.

    Singular values under 1e-8 of the largest are lost, which float32 factors do not hold anyway.
    """
    transposed = matrix.shape[0] > matrix.shape[1]
    a = matrix.T if transposed else matrix
    with _ONE_AT_A_TIME:
        values, vectors = torch.linalg.eigh(_gram(a))
        whole = values.flip(0).clamp_min(0).sqrt()
        k = _count(whole, rule)
        s, u = whole[:k], vectors[:, -k:].flip(1)
        del values, vectors
    v = completed(_times_transposed(a, u), s)
    factors = LowRank(v, s, u) if transposed else LowRank(u, s, v)
    factors = factors.to(a.device, torch.float32)
    return Leading(factors, _residual(matrix, factors), participation_of(whole))


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


def _residual(matrix: torch.Tensor, factors: LowRank) -> float:
    """The residual, by one multiplication by the matrix on each side."""
    right = (matrix @ factors.V - factors.U * factors.S).norm(dim=0).max()
    left = (matrix.T @ factors.U - factors.V * factors.S).norm(dim=0).max()
    return float(torch.maximum(left, right)) / float(factors.S[0])
