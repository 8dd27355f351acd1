"""Low-rank factors of a task matrix, and how many of them to keep.

Symbols, here and in the rest of the package: a task matrix ``T`` has shape ``(m, n)`` = (out
features, in features); ``U`` is ``(m, k)``, ``S`` is ``(k,)`` in descending order, ``V`` is
``(n, k)``; ``T ≈ U diag(S) Vᵀ`` with orthonormal columns in ``U`` and ``V``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weightsurgery.errors import EditError

__all__ = [
    "DonohoGavish",
    "Energy",
    "LowRank",
    "Rank",
    "RankRule",
    "Truncation",
    "orth",
    "rank_by",
    "recompress",
    "truncated_svd",
]

# Up to this many columns on the short side a full float64 SVD is cheap (0.3 s) and exact.
EXACT_UP_TO = 512

# Block Krylov: k + OVERSAMPLE columns, DEPTH multiplications by A Aᵀ. Measured against
# subspace iteration in METHODS and the benchmark; deeper gains nothing in float32.
OVERSAMPLE = 32
DEPTH = 5


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

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> LowRank:
        """The same factors elsewhere or in another dtype."""
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


def truncated_svd(
    matrix: torch.Tensor, rule: RankRule, *, seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> Truncation:
    """The leading singular triplets of a matrix.

    Small matrices (short side up to ``exact_up_to``, or not much larger than the rank) take a
    full SVD in float64. Others take randomised block Krylov iteration (Musco & Musco 2015,
    arXiv 1504.05477, Algorithm 2) with orthonormalised blocks and a float64 Rayleigh-Ritz step.

    Args:
        matrix: Shape ``(m, n)``, float32, finite; on any device.
        rule: How many factors to keep.
        seed: Seed of the random start block; the result is a function of it.
        exact_up_to: Threshold for the full SVD.

    Returns:
        Float32 factors on the matrix's device; at least one factor, also of a zero matrix. A
        rank beyond ``min(m, n)`` gives ``min(m, n)``.
    """
    m, n = matrix.shape
    short = min(m, n)
    total = float(matrix.norm(dtype=torch.float64)) ** 2
    if isinstance(rule, DonohoGavish):
        rule = Rank(_gavish_donoho_rank(matrix))
    # A Krylov basis as wide as the matrix costs more than the full SVD.
    exact = short <= exact_up_to
    if isinstance(rule, Rank):
        k = min(rule.k, short)
        if exact or (k + OVERSAMPLE) * (DEPTH + 1) > short:
            return Truncation(_exact_svd(matrix).truncated(k), total, 0.0)
        return _with_error(matrix, _block_krylov(matrix, k, seed), total)

    if total == 0:
        return truncated_svd(matrix, Rank(1), seed=seed, exact_up_to=exact_up_to)
    k = 32
    while not exact and (k + OVERSAMPLE) * (DEPTH + 1) <= short:
        factors = _block_krylov(matrix, k, seed)
        if factors.energy >= rule.fraction * total:
            chosen = factors.truncated(_rank_for(factors.S, rule.fraction * total))
            return _with_error(matrix, chosen, total)
        k *= 2
    factors = _exact_svd(matrix)
    # The factors' own sum, so that energy 1.0 is not missed by a rounding of the norm.
    return Truncation(
        factors.truncated(_rank_for(factors.S, rule.fraction * factors.energy)), total, 0.0
    )


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
        return _rank_for(singular, rule.fraction * total)
    return singular.numel()


def _rank_for(singular: torch.Tensor, energy: float) -> int:
    held = singular.double().square().cumsum(0)
    return min(singular.numel(), int((held < energy * (1 - 1e-12)).sum()) + 1)


def _exact_svd(matrix: torch.Tensor) -> LowRank:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return LowRank(u, s, vh.T).to(matrix.device, torch.float32)


def _gavish_donoho_rank(matrix: torch.Tensor) -> int:
    m, n = matrix.shape
    beta = min(m, n) / max(m, n)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    # The median needs the whole spectrum; the Gram matrix of the short side gives it to 1e-8 σ₁.
    short = matrix if m <= n else matrix.T
    gram = torch.zeros(short.shape[0], short.shape[0], dtype=torch.float64, device=matrix.device)
    for start in range(0, short.shape[1], 4096):
        block = short[:, start : start + 4096].double()
        gram.addmm_(block, block.T)
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
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
    # Dividing by σ is unstable for zero factors, so let QR complete the basis where σ vanishes.
    v = v / s.clamp_min(torch.finfo(torch.float64).tiny)
    if float(s[-1]) <= float(s[0]) * 1e-6:
        v, r = torch.linalg.qr(v)
        v = v * torch.where(r.diagonal() < 0, -1.0, 1.0)
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
