"""Low-rank factors of a task matrix, and how many of them to keep.

Symbols, here and in the rest of the package: a task matrix ``T`` has shape ``(m, n)`` = (out
features, in features); ``U`` is ``(m, k)``, ``S`` is ``(k,)`` in descending order, ``V`` is
``(n, k)``; ``T ≈ U diag(S) Vᵀ`` with orthonormal columns in ``U`` and ``V``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightsurgery.algebra.precision import exact_products
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError

__all__ = [
    "DonohoGavish",
    "Energy",
    "LowRank",
    "Rank",
    "RankRule",
    "orth",
    "participation",
    "participation_of",
    "rank_by",
    "rank_for",
    "recompress",
]

# The smallest relative tolerance whose square is above float64's rounding.
_GRAM_RESOLVES = 1e-7
# Smallest eigenvalue of a Gram matrix, relative to the largest, at which squaring loses 1e-13.
_WELL_APART = 1e-3


@dataclass(frozen=True)
class LowRank:
    """A matrix held as its factors; never multiplied out as a whole.

    Attributes:
        U: Shape ``(m, k)``, orthonormal columns.
        S: Shape ``(k,)``, descending, not negative.
        V: Shape ``(n, k)``, orthonormal columns.
    """

    U: torch.Tensor
    S: torch.Tensor
    V: torch.Tensor

    @property
    def rank(self) -> int:
        """Number of factors kept."""
        return self.S.numel()

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.U.shape[0], self.V.shape[0]

    @property
    def energy(self) -> float:
        """Squared Frobenius norm."""
        return float(self.S.double().square().sum())

    @exact_products()
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of ``U diag(S) Vᵀ``, shape ``(stop - start, n)``."""
        return (self.U[start:stop] * self.S) @ self.V.T

    def matrix(self) -> torch.Tensor:
        """The whole matrix, shape ``(m, n)``."""
        return self.rows(0, self.shape[0])

    def truncated(self, rank: int) -> LowRank:
        """The leading ``rank`` factors."""
        return LowRank(self.U[:, :rank], self.S[:rank], self.V[:, :rank])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> LowRank:
        """The same factors elsewhere, in float32 or another dtype."""
        dtype = dtype or torch.float32
        return LowRank(*(x.to(device=device, dtype=dtype) for x in (self.U, self.S, self.V)))


@dataclass(frozen=True)
class Rank:
    """Keep a given number of factors."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise EditError(f"rank {self.k}", "A rank is a whole number from 1.")

    def __str__(self) -> str:
        return str(self.k)


@dataclass(frozen=True)
class Energy:
    """Keep the fewest factors that hold this fraction of the squared Frobenius norm."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise EditError(f"energy {self.fraction}", "An energy is a fraction in (0, 1].")

    def __str__(self) -> str:
        return f"energy {self.fraction!r}"


@dataclass(frozen=True)
class DonohoGavish:
    """Keep the factors above the optimal hard threshold for unknown noise.

    Gavish & Donoho 2014 (arXiv 1305.5870), eq. 4: ``τ = ω(β) · median(σ)`` with
    ``ω(β) ≈ 0.56 β³ − 0.95 β² + 1.82 β + 1.43``, ``β = min(m, n) / max(m, n)``.
    """

    def __str__(self) -> str:
        return "auto (Gavish-Donoho)"


RankRule = Rank | Energy | DonohoGavish


def orth(columns: torch.Tensor, tolerance: float | None = None) -> torch.Tensor:
    """An orthonormal basis of the span of some columns, numerically rank-revealing.

    Columns are scaled to length one first, so that a short direction counts as much as a long
    one; directions whose singular value falls under ``tolerance`` times the largest are taken
    for rounding.

    Args:
        columns: Shape ``(d, p)``; zero columns are allowed.
        tolerance: Relative threshold; by default ``max(d, p) · eps`` of float32, computed in
            float64, which forgives the rounding of float32 inputs.

    Returns:
        Shape ``(d, r)``, ``r ≤ min(d, p)``, dtype of ``columns``; ``(d, 0)`` if all are zero.
    """
    wide = columns.double()
    norms = wide.norm(dim=0)
    wide = wide[:, norms > 0] / norms[norms > 0]
    if wide.shape[1] == 0:
        return columns.new_zeros(columns.shape[0], 0)
    if tolerance is None:
        tolerance = max(wide.shape) * torch.finfo(torch.float32).eps
    if wide.shape[1] >= wide.shape[0] or tolerance < _GRAM_RESOLVES:
        basis, s, _ = torch.linalg.svd(wide, full_matrices=False)
        leading: torch.Tensor = basis[:, s > tolerance * s[0]].to(columns.dtype)
        return leading
    # By the Gram matrix, a third of the time: float64 squares resolve far more than needed.
    vectors, values, _ = torch.linalg.svd(wide.T @ wide)
    big = values > tolerance**2 * values[0]
    basis = wide @ (vectors[:, big] / values[big].sqrt())
    # Once more: short directions came out orthogonal only to eps / tolerance².
    basis = basis @ _inverse(torch.linalg.cholesky(basis.T @ basis, upper=True))
    orthonormal: torch.Tensor = basis.to(columns.dtype)
    return orthonormal


@exact_products()
def recompress(
    left: torch.Tensor, middle: torch.Tensor, right: torch.Tensor, rank: int | None = None
) -> LowRank:
    """SVD of ``left @ middle @ rightᵀ`` from its factors: QR, QR, and an SVD of the small core.

    Nothing larger than the factors is formed.

    Args:
        left: Shape ``(m, p)``.
        middle: Shape ``(p, q)``.
        right: Shape ``(n, q)``.
        rank: Keep at most this many factors; by default all above rounding.

    Returns:
        Factors in ``left``'s dtype; rank at least 1, so that a zero change keeps its shape.
    """
    left_columns, left_turn, left_r = _thin_qr(left.double())
    right_columns, right_turn, right_r = _thin_qr(right.double())
    u, s, vh = torch.linalg.svd(left_r @ middle.double() @ right_r.T, full_matrices=False)
    # Below float32 resolution of the largest factor there is only rounding.
    significant = int((s > s[:1] * torch.finfo(torch.float32).eps).sum())
    k = max(1, min(significant, s.numel() if rank is None else rank))
    return LowRank(
        left_columns @ (left_turn @ u[:, :k]), s[:k], right_columns @ (right_turn @ vh[:k].T)
    ).to(left.device, left.dtype)


def _thin_qr(columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``C, W, R`` with ``C W`` orthonormal and ``C W R`` the columns (float64).

    By a Cholesky factor of the Gram matrix, which spares forming ``Q``, where the columns, scaled
    to length one, are well apart; then it is as exact as the Householder QR of other cases.
    """
    norms = columns.norm(dim=0)
    if columns.shape[1] <= columns.shape[0] and bool((norms > 0).all()):
        gram = columns.T @ columns / (norms[:, None] * norms)
        values = torch.linalg.eigvalsh(gram)
        if float(values[0]) > _WELL_APART * float(values[-1]):
            r = torch.linalg.cholesky(gram, upper=True) * norms
            return columns, _inverse(r), r
    q, r = torch.linalg.qr(columns)
    return q, torch.eye(r.shape[0], dtype=r.dtype, device=r.device), r


def _inverse(upper: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(upper.shape[0], dtype=upper.dtype, device=upper.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(upper, eye, upper=True)
    return inverse


def participation(gram: Any, exact: bool) -> float:
    """Effective rank: participation ratio ``‖T‖⁴_F / ‖Tᵀ T‖²_F`` of the squared singular values.

    From the Gram matrix of a sketch ``T Z``. If ``Z`` is orthogonal and square, ``tr(G)² / ‖G‖²``.
    If it is Gaussian, the diagonal averages to ``‖T‖²`` and the squares off the diagonal to
    ``‖Tᵀ T‖²``; their ratio varies far less than either.

    Args:
        gram: Shape ``(p, p)``, float64, an array or tensor.
        exact: Whether ``Z`` is square and orthogonal.
    """
    diagonal = gram.diagonal()
    p, trace = len(diagonal), float(diagonal.sum())
    if trace <= 0:
        return 0.0
    squares = float((gram * gram).sum())
    if exact or p < 2:
        return trace**2 / squares
    off = (squares - float((diagonal * diagonal).sum())) / (p * (p - 1))
    return max(1.0, (trace / p) ** 2 / off) if off > 0 else 1.0


def participation_of(singular: torch.Tensor) -> float:
    """Effective rank of a whole spectrum, descending; 0 if it vanishes."""
    tiny = torch.finfo(torch.float64).tiny
    squares = singular.double().square() / singular[0].double().square().clamp_min(tiny)
    return float(squares.sum().square() / squares.square().sum().clamp_min(tiny))


def rank_by(singular: torch.Tensor, total: float, rule: RankRule) -> int:
    """How many factors of an exact low-rank matrix a rule keeps.

    Args:
        singular: All nonzero singular values, descending.
        total: Their sum of squares.
        rule: The rule. An exactly low-rank matrix has no noise (its median singular value is
            zero), so :class:`DonohoGavish` keeps everything.
    """
    if isinstance(rule, Rank):
        return min(rule.k, singular.numel())
    if isinstance(rule, Energy):
        return rank_for(singular, rule.fraction * total)
    return singular.numel()


def rank_for(singular: torch.Tensor, energy: float) -> int:
    """The fewest leading singular values whose squares sum up to an energy."""
    held = singular.double().square().cumsum(0)
    return min(singular.numel(), int((held < energy * (1 - 1e-12)).sum()) + 1)
