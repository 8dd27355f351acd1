"""Subspace discrimination: take away what a task shares with the tasks to keep.

Reconstruction of the second step of UNLEARN (Lizzo & Heck, arXiv 2408.04140), "a variation of
the Gram-Schmidt process"; the paper gives no equations. With ``T = U diag(S) Vᵀ`` the task to
forget and ``(U_j, S_j, V_j)`` the tasks to keep:

=============  ==================================================================================
basis          directions taken away
=============  ==================================================================================
``joint``      once, the span of all of them: ``Q_V = orth([V_1 .. V_p])``, ``Q_U`` likewise
``sum``        one after another, each measured on ``T`` itself (the paper's wording). A direction
               that two keep tasks share is taken away twice, so some of it stays behind
=============  ==================================================================================

=============  ==================================================================================
side           result ``T'``
=============  ==================================================================================
``right``      ``T (I − P_V)``: ``W'x = Wx`` for every ``x`` in the span of the keep inputs
``left``       ``(I − P_U) T``: the change never points along a keep output
``both``       ``(I − P_U) T (I − P_V)``
``shared``     ``T − P_U T P_V``: only what is shared on both sides at once
``frobenius``  ``T`` minus its projection on ``span{u_ji v_jiᵀ}`` in the Frobenius inner product
``soft``       ``T ρ (C + ρI)⁻¹`` with ``C = Σ T_jᵀ T_j``: ``right`` by a ridge, see below
=============  ==================================================================================

``right`` takes a direction away whole, however little the keep tasks moved along it, and at one
stroke as many as they have factors. ``soft`` weighs them: it is the one minimum of

    ``‖X − T‖²_F + Σ_j ‖X T_jᵀ‖²_F / ρ``,   ``ρ = ε · tr(C) / n``,

near to ``T``, and small where the keep tasks moved much, as
:mod:`weightsurgery.algebra.activations` is for inputs; ``C`` stands in for them, since the rows of
a change by gradient descent are sums of inputs. (Ridge regression: Hoerl & Kennard 1970,
Technometrics 12:55; the null-space projection that it softens is AlphaEdit's, Fang et al. 2024,
arXiv 2410.02355.) An eigenvector of ``C`` with eigenvalue λ is scaled by ``ρ / (λ + ρ)``, what is
orthogonal to all keep inputs by 1. Hence, for every ``T``,

- ε → 0 is ``right``, which ε = 0 gives exactly, and ε → ∞ is ``T`` itself, so plain negation;
- ``‖T'‖ ≤ ‖T‖``, and ``‖T'‖`` grows with ε;
- the keep tasks' lengths count against one another, not together: scaling all changes nothing.

In basis ``sum`` each task has a ridge of its own, ``T' = T − Σ_j T C_j (C_j + ρ_j I)⁻¹``.

Only factors are ever held; nothing of size ``n × n`` or ``m × n`` is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from weightsurgery.algebra.activations import check_epsilon
from weightsurgery.algebra.lowrank import LowRank, orth, recompress
from weightsurgery.algebra.precision import exact_products
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.suggestions import one_of

__all__ = [
    "BASES",
    "SIDES",
    "SOFT_EPSILON",
    "KeepSpace",
    "cosine",
    "discriminate",
    "inner_product",
    "overlap",
    "principal_angles",
]

SOFT_EPSILON = 0.03
"""The ridge of the side ``soft`` where none is given: between what did best on a real model (0.001)
and on embedded worlds (0.03 or 0.1); see ``scripts/reproduce``."""


@dataclass(frozen=True)
class KeepSpace:
    """The tasks to keep, prepared once for any number of tasks to forget.

    Attributes:
        tasks: The factors of each keep task.
        basis: ``"joint"`` or ``"sum"``; in ``joint`` the columns of :attr:`U` and :attr:`V` are
            orthonormal, in ``sum`` they are the tasks' own, side by side.
    """

    tasks: tuple[LowRank, ...]
    basis: str = "joint"

    @classmethod
    def of(cls, tasks: Sequence[LowRank], basis: str = "joint") -> KeepSpace:
        """Prepare keep tasks.

        Args:
            tasks: Factors of the tasks, all of the same ``(m, n)``; at least one. Factors with a
                vanishing singular value carry no direction and are left out.
            basis: ``"joint"`` or ``"sum"``.

        Raises:
            EditError: An unknown basis.
        """
        if basis not in BASES:
            raise EditError(f"basis {basis!r}", one_of(basis, BASES))
        return cls(tuple(_significant(task) for task in tasks), basis)

    @cached_property
    def U(self) -> torch.Tensor:  # noqa: N802 - a matrix, as in the formulas
        """Output directions to take away, shape ``(m, p)``; computed at first use."""
        return self._joined([task.U for task in self.tasks])

    @cached_property
    def V(self) -> torch.Tensor:  # noqa: N802
        """Input directions to take away, shape ``(n, q)``; computed at first use."""
        return self._joined([task.V for task in self.tasks])

    @cached_property
    def spectrum(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Eigenvectors ``(n, q)`` and eigenvalues ``(q,)`` of ``C``, float64; ``q`` spans ``V``.

        One pair for the basis ``joint``, one for each task for ``sum``; computed at first use.
        """
        if self.basis == "sum" or len(self.tasks) == 1:
            return tuple((task.V.double(), task.S.double().square()) for task in self.tasks)
        # float32 columns are orthonormal to 1e-7 alone.
        basis = torch.linalg.qr(self.V.double()).Q
        weighted = torch.cat([basis.T @ (task.V.double() * task.S) for task in self.tasks], dim=1)
        turn, s, _ = torch.linalg.svd(weighted, full_matrices=False)
        return ((basis @ turn, s.square()),)

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)`` of the tasks."""
        return self.tasks[0].shape

    def _joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        if len(parts) == 1:
            return parts[0]  # orthonormal already
        columns = torch.cat(list(parts), dim=1)
        return orth(columns) if self.basis == "joint" else columns


def _significant(task: LowRank) -> LowRank:
    top = float(task.S[0]) if task.rank else 0.0
    return task.truncated(int((top * 1e-6 < task.S).sum()))


def _block_diagonal(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    matrix: torch.Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _right(task: LowRank, keep: KeepSpace) -> LowRank:
    v = task.V - keep.V @ (keep.V.T @ task.V)
    return recompress(task.U, torch.diag(task.S), v, task.rank)


def _left(task: LowRank, keep: KeepSpace) -> LowRank:
    u = task.U - keep.U @ (keep.U.T @ task.U)
    return recompress(u, torch.diag(task.S), task.V, task.rank)


def _both(task: LowRank, keep: KeepSpace) -> LowRank:
    u = task.U - keep.U @ (keep.U.T @ task.U)
    v = task.V - keep.V @ (keep.V.T @ task.V)
    return recompress(u, torch.diag(task.S), v, task.rank)


def _shared(task: LowRank, keep: KeepSpace) -> LowRank:
    if keep.basis == "joint":
        pairs = [(keep.U, keep.V)]
    else:
        pairs = [(other.U, other.V) for other in keep.tasks]
    left, middle, right = [task.U], [torch.diag(task.S)], [task.V]
    for u, v in pairs:
        left.append(u)
        middle.append(-(u.T @ task.U) * task.S @ (task.V.T @ v))
        right.append(v)
    return recompress(torch.cat(left, 1), _block_diagonal(middle), torch.cat(right, 1))


def _frobenius(task: LowRank, keep: KeepSpace) -> LowRank:
    u = torch.cat([other.U for other in keep.tasks], dim=1).double()
    v = torch.cat([other.V for other in keep.tasks], dim=1).double()
    # ⟨T, uᵢ vᵢᵀ⟩ = uᵢᵀ T vᵢ, and the Gram matrix of the rank-one terms is (UᵀU) ∘ (VᵀV).
    inner = ((u.T @ task.U.double()) * task.S.double() * (v.T @ task.V.double())).sum(1)
    if keep.basis == "joint":
        gram = (u.T @ u) * (v.T @ v)
        # Tasks that share a direction make the Gram matrix singular: least squares by eigh.
        values, vectors = torch.linalg.eigh(gram)
        big = values > values[-1:] * max(gram.shape) * torch.finfo(torch.float32).eps
        inverse = torch.where(big, values.reciprocal(), torch.zeros_like(values))
        inner = vectors @ (inverse * (vectors.T @ inner))
    middle = _block_diagonal([torch.diag(task.S.double()), torch.diag(-inner)])
    left = torch.cat([task.U.double(), u], 1)
    right = torch.cat([task.V.double(), v], 1)
    return recompress(left, middle, right).to(task.S.device, task.S.dtype)


def _soft(task: LowRank, keep: KeepSpace, epsilon: float) -> LowRank:
    if epsilon == 0:
        return _right(task, keep)
    right = task.V.double()
    taken = torch.zeros_like(right)
    for vectors, values in keep.spectrum:
        ridge = epsilon * values.sum() / vectors.shape[0]
        taken += vectors @ ((values / (values + ridge))[:, None] * (vectors.T @ right))
    factors = recompress(task.U.double(), torch.diag(task.S.double()), right - taken, task.rank)
    return factors.to(task.S.device, task.S.dtype)


_HARD: Mapping[str, Callable[[LowRank, KeepSpace], LowRank]] = {
    "right": _right,
    "left": _left,
    "both": _both,
    "shared": _shared,
    "frobenius": _frobenius,
}

SIDES = (*_HARD, "soft")
BASES = ("joint", "sum")


@exact_products()
def discriminate(
    task: LowRank, keep: KeepSpace, side: str = "right", epsilon: float = SOFT_EPSILON
) -> LowRank:
    """Remove the directions a task shares with the tasks to keep; see the module's tables.

    Args:
        task: The task to forget (or to learn), rank ``k``.
        keep: The tasks to keep.
        side: One of :data:`SIDES`.
        epsilon: ε ≥ 0 of the side ``soft``; the others have none.

    Returns:
        ``T'``. Its rank is at most ``k`` for ``right``, ``left``, ``both`` and ``soft``; ``shared``
        and ``frobenius`` subtract terms that lie outside the task's own factors: their rank is at
        most ``2k`` (joint) and ``k`` plus the sum of the keep ranks. If nothing survives, the
        singular values are of the order of rounding.

    Raises:
        EditError: An unknown side, a senseless ε, or keep tasks of another shape.

    Example: of a task that reads inputs 1 and 2, what is left beside one that reads input 2::

        >>> def task(*rows):
        ...     u, s, vh = torch.linalg.svd(torch.tensor(rows), full_matrices=False)
        ...     return LowRank(u[:, :1], s[:1], vh[:1].T)
        >>> forget, keep = task([1.0, 1.0], [2.0, 2.0]), task([0.0, 3.0], [0.0, 1.0])
        >>> discriminate(forget, KeepSpace.of([keep])).matrix().round(decimals=4)
        tensor([[1., 0.],
                [2., 0.]])
    """
    if side not in SIDES:
        raise EditError(f"side {side!r}", one_of(side, SIDES))
    if keep.shape != task.shape:
        raise EditError(
            f"keep directions of {keep.shape} for a task of {task.shape}",
            "All tasks must be changes of the same base.",
        )
    if not any(other.rank for other in keep.tasks):
        return task
    if side == "soft":
        check_epsilon(epsilon)
        return _soft(task, keep, epsilon)
    return _HARD[side](task, keep)


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
