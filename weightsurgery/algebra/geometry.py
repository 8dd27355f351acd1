"""How much two tasks share: principal angles, overlap, cosine."""

from __future__ import annotations

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.algebra.precision import exact_products
from weightsurgery.deferred import torch

__all__ = ["cosine", "inner_product", "overlap", "principal_angles"]


@exact_products()
def principal_angles(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Principal angles between two subspaces, in radians, ascending.

    Small angles are taken from their sines and large ones from their cosines, since arccos
    loses half the digits near zero (Björck & Golub 1973; Knyazev & Argentati 2002, Alg. 3.1).

    Args:
        first: Orthonormal columns, shape ``(d, p)``.
        second: Orthonormal columns, shape ``(d, q)``.

    Returns:
        Shape ``(min(p, q),)``, float64, in ``[0, π/2]``.
    """
    a, b = first.double(), second.double()
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    product = a.T @ b
    cosines = torch.linalg.svdvals(product).clamp(0, 1)
    sines = torch.linalg.svdvals(b - a @ product).clamp(0, 1).flip(0)
    return torch.where(cosines**2 >= 0.5, torch.arcsin(sines), torch.arccos(cosines))


def overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean squared cosine of the principal angles: 0 for orthogonal, 1 for nested subspaces.

    ``‖A ᵀB‖²_F / min(p, q)``. Two random subspaces of dimension ``p`` and ``q`` in ``d``
    dimensions overlap by ``max(p, q) / d`` on average; compare with that, not with zero.

    Args:
        first: Orthonormal columns, shape ``(d, p)``.
        second: Orthonormal columns, shape ``(d, q)``.
    """
    smaller = min(first.shape[1], second.shape[1])
    if smaller == 0:
        return 0.0
    return min(1.0, float((first.double().T @ second.double()).square().sum()) / smaller)


@exact_products()
def inner_product(first: LowRank, second: LowRank) -> float:
    """Frobenius inner product of two matrices given by factors, computed on the factors."""
    left = (first.U.T @ second.U).double() * second.S.double()
    right = (first.V.T @ second.V).double() * first.S.double()[:, None]
    return float((left * right).sum())


def cosine(first: LowRank, second: LowRank) -> float:
    """Cosine of two matrices in the Frobenius inner product; 0 if one of them is zero."""
    norms = (first.energy * second.energy) ** 0.5
    return inner_product(first, second) / norms if norms > 0 else 0.0
