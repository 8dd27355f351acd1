"""Low-rank factors of a task matrix, and how many of them to keep.

Symbols, here and in the rest of the package: a task matrix ``T`` has shape ``(m, n)`` = (out
features, in features); ``U`` is ``(m, k)``, ``S`` is ``(k,)`` in descending order, ``V`` is
``(n, k)``; ``T ≈ U diag(S) Vᵀ`` with orthonormal columns in ``U`` and ``V``.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError

__all__ = [
    "DonohoGavish",
    "Energy",
    "LowRank",
    "Rank",
    "RankRule",
    "orth",
    "rank_by",
    "rank_for",
    "recompress",
]


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
    if wide.shape[1] < wide.shape[0]:  # QR first: the SVD then is of a small matrix
        q, r = torch.linalg.qr(wide)
        u, s, _ = torch.linalg.svd(r, full_matrices=False)
        basis = q @ u
    else:
        basis, s, _ = torch.linalg.svd(wide, full_matrices=False)
    kept: torch.Tensor = basis[:, s > tolerance * s[0]]
    return kept.to(columns.dtype)


def recompress(
    left: torch.Tensor, middle: torch.Tensor, right: torch.Tensor, rank: int | None = None
) -> LowRank:
    """SVD of ``left @ middle @ rightᵀ`` from its factors: QR, QR, and an SVD of the small core.

    Args:
        left: Shape ``(m, p)``.
        middle: Shape ``(p, q)``.
        right: Shape ``(n, q)``.
        rank: Keep at most this many factors; by default all above rounding.

    Returns:
        Factors in ``left``'s dtype; rank at least 1, so that a zero change keeps its shape.
    """
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double())
    u, s, vh = torch.linalg.svd(r_left @ middle.double() @ r_right.T, full_matrices=False)
    # Below float32 resolution of the largest factor there is only rounding.
    significant = int((s > s[:1] * torch.finfo(torch.float32).eps).sum())
    k = max(1, min(significant, s.numel() if rank is None else rank))
    dtype = left.dtype
    return LowRank((q_left @ u[:, :k]).to(dtype), s[:k].to(dtype), (q_right @ vh[:k].T).to(dtype))


def rank_by(singular: torch.Tensor, total: float, rule: RankRule) -> int:
    """How many factors of an exact low-rank matrix a rule keeps.

    Args:
        singular: All nonzero singular values, descending.
        total: Their sum of squares.
        rule: The rule. There is no noise to tell apart in an exactly low-rank matrix (its median
            singular value is zero), so :class:`DonohoGavish` keeps everything.
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
