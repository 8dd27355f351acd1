"""Block Krylov iteration for the leading singular triplets of a large matrix.

Musco & Musco 2015 (arXiv 1504.05477), Algorithm 2, with three differences: as many iterations as
the matrix needs, the products that extend the basis also yield the Rayleigh-Ritz values and
residuals, and each panel is multiplied by the matrix and its transpose while it is in the cache.

Blocks are kept as rows: ``(b, short)`` on the matrix's shorter side, ``(long, b)`` on the longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from weightsurgery.algebra.lowrank import LowRank, participation
from weightsurgery.deferred import torch

__all__ = ["TOLERANCE", "Leading", "completed", "leading"]

# Fraction of the captured energy that the iteration may miss, by its own estimate.
TOLERANCE = 7.5e-4
# On flat, linear and decaying spectra the energy missed was at most 6 times the plain estimate,
# and at most 4 times where it came near the tolerance.
_CAUTION = 5.0
# A factor whose square may yet grow by more than this fraction has not converged.
_UNSETTLED = 0.25
# Residuals below this fraction of the largest Ritz value are the rounding of float32 products.
_ROUNDING = 2e-6
# Narrower blocks hardly multiply faster, and would estimate the effective rank less well.
_NARROWEST = 32
# 2 MB of float32: a panel is still in the cache when it is multiplied a second time.
_PANEL = 1 << 19


@dataclass(frozen=True)
class Leading:
    """Leading factors with their accuracy.

    Attributes:
        factors: Float32, on the matrix's device.
        residual: As in :class:`weightsurgery.algebra.svd.Truncation`.
        effective_rank: As there.
    """

    factors: LowRank
    residual: float
    effective_rank: float


def leading(
    matrix: torch.Tensor,
    k: int,
    total: float,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    enough: float = math.inf,
) -> Leading | None:
    """The ``k`` leading singular triplets, or fewer that hold enough energy.

    Args:
        matrix: Shape ``(m, n)``, float32; its norm within about 1e±9, that squares neither
            overflow nor vanish.
        k: How many.
        total: Its squared Frobenius norm, positive.
        seed: Seed of the random start block, which is made on the CPU for all devices.
        tolerance: Fraction of the captured energy that may be missed, by estimate.
        enough: Energy that suffices. Where ``k`` factors cannot hold it, the iteration stops early
            and returns what it has.

    Returns:
        None where the basis would grow to three quarters of the matrix.
    """
    width = max(_NARROWEST, -(-k // 16) * 16)
    if 2 * width > _most_columns(min(matrix.shape)):
        return None
    steps = _Steps(matrix, width, seed)
    while steps.extend():
        ritz = steps.ritz(k).holding(enough)
        shortfall = _shortfall(ritz, total, steps)
        missing = _CAUTION * float(shortfall.sum())
        captured = float(ritz.values.sum())
        settled = bool((shortfall <= _UNSETTLED * ritz.values).all())
        hopeless = enough < math.inf and captured + missing < enough
        if (missing <= tolerance * captured and settled) or hopeless:
            return _finished(matrix, steps, ritz)
    return None


def _most_columns(short: int) -> int:
    """From about here on a basis costs more than the whole spectrum."""
    return 3 * short // 4


@dataclass(frozen=True)
class _Ritz:
    """Rayleigh-Ritz pairs of ``A Aᵀ`` (float64), with ``A`` of shape ``(short, long)``."""

    values: torch.Tensor  # (k,) descending
    mixing: torch.Tensor  # (columns of the basis, k)
    vectors: torch.Tensor  # (k, short)
    residuals: torch.Tensor  # (k,): ‖A Aᵀ u − θ u‖
    trace: float  # of the whole projected matrix

    def holding(self, enough: float) -> _Ritz:
        """The fewest of the leading pairs that hold an energy; all of them if they do not."""
        k = int((self.values.cumsum(0) < enough).sum()) + 1
        return replace(
            self,
            values=self.values[:k],
            mixing=self.mixing[:, :k],
            vectors=self.vectors[:k],
            residuals=self.residuals[:k],
        )


class _Steps:
    """The growing basis, its images under the matrix, and theirs under the transpose."""

    def __init__(self, matrix: torch.Tensor, width: int, seed: int) -> None:
        self.tall = matrix.shape[0] >= matrix.shape[1]
        self.rows = matrix if self.tall else matrix.T  # (long, short)
        self.long, self.short = self.rows.shape
        self._panel = max(1, _PANEL // self.short) if matrix.device.type == "cpu" else self.long
        generator = torch.Generator("cpu").manual_seed(seed)
        start = torch.randn(width, self.long, generator=generator).to(matrix.device)
        sketch = start @ self.rows
        self.effective_rank = participation(_gram(sketch), exact=False)
        self._next = _orthonormal(sketch)
        self._width = width
        self._basis: list[torch.Tensor] = []
        self._images: list[torch.Tensor] = []
        self._products: list[torch.Tensor] = []
        self._gram = torch.zeros(0, 0, dtype=torch.float64, device=matrix.device)

    @property
    def columns(self) -> int:
        """Size of the basis."""
        return self._width * len(self._basis)

    def extend(self) -> bool:
        """Grow the basis by a third, at least by a block; False where it cannot grow."""
        for number in range(max(1, len(self._basis) // 3)):
            if self.columns + self._width > _most_columns(self.short):
                return number > 0
            if self._basis:
                self._next = self._outside(self._products[-1])
            image, product = self._multiplied(self._next)
            self._basis.append(self._next)
            self._images.append(image)
            self._products.append(product)
            self._gram = self._grown_gram()
        return True

    def _multiplied(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``Aᵀ Q``, shape ``(long, b)``, and ``A Aᵀ Q`` as rows; each panel is read once."""
        shape = (self.long, len(block)) if self.tall else (len(block), self.long)
        image = block.new_empty(shape)
        image = image if self.tall else image.T
        product = torch.zeros_like(block)
        for start in range(0, self.long, self._panel):
            part = self.rows[start : start + self._panel]
            # Which operand is transposed makes a quarter of the time; so measured.
            panel_image = part @ block.T if self.tall else (block @ part.T).T
            product.addmm_(panel_image.T, part)
            image[start : start + self._panel] = panel_image
        return image, product

    def _outside(self, block: torch.Tensor) -> torch.Tensor:
        """Orthonormal rows of a block, outside the basis."""
        basis = torch.cat(self._basis)
        for _ in range(2):  # once more: where nothing was left, rounding points back inside
            block = _orthonormal(block - (block @ basis.T) @ basis)
        return block

    def _grown_gram(self) -> torch.Tensor:
        """Gram matrix of all images, from that of all but the last."""
        old, width = self._gram.shape[0], self._width
        gram = self._gram.new_zeros(old + width, old + width)
        gram[:old, :old] = self._gram
        last = gram[old:]
        for _, images in self.image_panels():
            last.addmm_(images[:, old:].T, images)
        gram[:old, old:] = last[:, :old].T
        return gram

    def ritz(self, k: int) -> _Ritz:
        """The leading Ritz pairs; in float64, as float32 would lose factors under 3e-4 σ₁."""
        values, mixing = torch.linalg.eigh(self._gram)
        values, mixing = values.flip(0)[:k].clamp_min(0), mixing.flip(1)[:, :k]
        vectors = mixing.T @ torch.cat(self._basis).double()
        away = mixing.T @ torch.cat(self._products).double() - values[:, None] * vectors
        return _Ritz(values, mixing, vectors, away.norm(dim=1), float(self._gram.trace()))

    def image_panels(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """All images side by side, float64, some rows at a time."""
        for start in range(0, self.long, 1024):
            panel = slice(start, start + 1024)
            yield panel, torch.cat([image[panel] for image in self._images], 1).double()


def _gram(rows: torch.Tensor) -> torch.Tensor:
    wide = rows.double()
    return wide @ wide.T


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(rows.T).Q.T.contiguous()
    return basis


def _shortfall(ritz: _Ritz, total: float, steps: _Steps) -> torch.Tensor:
    """By how much each Ritz value may fall short: ``rᵢ² / (θᵢ − μ)``; 0 where it is rounding.

    The classical bound has the distance to the rest of the spectrum in place of ``θᵢ − μ``; ``μ``
    is the mean of that rest. It makes the estimate independent of a shift of the spectrum, as
    Krylov spaces are; ``rᵢ² / θᵢ`` alone is too small where a matrix is long and thin.
    """
    rest = max(0.0, total - ritz.trace) / max(1, steps.short - steps.columns)
    values = ritz.values
    gaps = torch.maximum(values - rest, 1e-3 * values)
    felt = ritz.residuals > _ROUNDING * values[0]
    return torch.where(felt, ritz.residuals.square() / gaps, 0.0)


def _finished(matrix: torch.Tensor, steps: _Steps, ritz: _Ritz) -> Leading:
    s = ritz.values.sqrt()
    v = ritz.mixing.new_empty(steps.long, s.numel())
    for panel, images in steps.image_panels():
        v[panel] = images @ ritz.mixing
    v = completed(v, s)
    short, long = ritz.vectors.T, v
    left, right = (long, short) if steps.tall else (short, long)
    factors = LowRank(left, s, right).to(matrix.device, torch.float32)
    # Aᵀ u = σ v holds by construction, and A v − σ u is the Ritz residual over σ. Where σ is
    # small that division leaves rounding, so there it is multiplied out.
    away = ritz.residuals / s
    small = s < 1e-2 * s[0]
    if bool(small.any()):
        direct = long[:, small].float().T @ steps.rows
        away[small] = (direct.double() - s[small, None] * ritz.vectors[small]).norm(dim=1)
    residual = max(float((away / s[0]).max()), torch.finfo(torch.float32).eps)
    return Leading(factors, residual, steps.effective_rank)


def completed(scaled: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Orthonormal ``V`` from ``V diag(S)``: QR fills in where a singular value vanishes."""
    v = scaled / s.clamp_min(torch.finfo(torch.float64).tiny)
    if float(s[-1]) <= float(s[0]) * 1e-4:
        v, r = torch.linalg.qr(v)
        v = v * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return v
