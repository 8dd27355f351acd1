"""Keep by activations for many ridges and many kept spans, from one decomposition of the inputs.

:func:`weightsurgery.algebra.activations.keep_inputs` solves for one ridge. Here the eigenvectors of
``C = Q Λ Qᵀ`` serve all of them, and all spans ``V`` that a change leaves alone already: with
``A = C + ρ I`` and orthonormal ``N`` that completes ``V``,

    ``N (Nᵀ A N)⁻¹ Nᵀ = A⁻¹ − A⁻¹ V (Vᵀ A⁻¹ V)⁻¹ Vᵀ A⁻¹``

(least squares under the constraint ``x V = 0``; Björck 1996, section 5.1), and ``ρ A⁻¹`` is the
diagonal ``ρ / (λ + ρ)`` in the basis ``Q``.
"""

from __future__ import annotations

from weightsurgery.algebra.activations import InputSpace, outside
from weightsurgery.algebra.lowrank import LowRank, recompress
from weightsurgery.deferred import torch

__all__ = ["Ridges"]

# Relative error the solve above may have, as bounded by the condition of C + ρ I: about the
# rounding of float32 factors.
_SOLVE_ERROR = 1e-7

# Of the inputs' energy: what float32 directions V leave of a span that holds all of it.
_ROUNDING = 1e-12


class Ridges:
    """``T' = T ρ ((I − P) C (I − P) + ρ I)⁻¹`` for any ridge ε and any kept span ``P = V Vᵀ``.

    Args:
        gram: ``C``, ``(n, n)``, float64.

    Raises:
        EditError: Not square, or no sum of ``x xᵀ``.
        NonFiniteError: NaN or infinity.
    """

    def __init__(self, gram: torch.Tensor) -> None:
        self._gram = gram
        self._space = InputSpace.of(gram)
        q = self._space.Q
        # As they are: for a ridge, what may be rounding is still better than zero.
        self._values = ((gram @ q) * q).sum(0).clamp_min(0)
        self._trace = float(gram.diagonal().sum())
        self._reduced: tuple[torch.Tensor, InputSpace] | None = None

    def apply(
        self, task: LowRank, epsilon: float, untouched: torch.Tensor | None = None
    ) -> LowRank:
        """Hold a change back.

        Args:
            task: ``T``, rank ``k``; with ``T V = 0`` where ``untouched`` is given.
            epsilon: ε ≥ 0; where it is so small, or so little of ``C`` lies outside ``V``, that
                solving would lose digits that float32 holds, ``C`` less that span is decomposed
                for itself, once for as long as the span stays the same object.
            untouched: ``V``, ``(n, q)``, orthonormal columns.

        Returns:
            Rank at most ``k``; dtype and device of ``task``.

        Raises:
            EditError: Another width, or ε is negative or not finite.
        """
        if untouched is None or not untouched.shape[1]:
            if self._solvable(epsilon * self._trace / self._values.numel()):
                return self._solved(task, epsilon * self._trace / self._values.numel(), None)
            return self._space.discriminate(task, epsilon)
        v = torch.linalg.qr(untouched.to(self._gram.device, torch.float64)).Q
        left = self._trace - float(((self._gram @ v) * v).sum())
        if left <= _ROUNDING * self._trace:
            return task
        ridge = epsilon * left / self._values.numel()
        if self._solvable(ridge):
            return self._solved(task, ridge, v)
        reduced = self._reduced  # read once: threads may share this
        if reduced is None or reduced[0] is not untouched:
            reduced = untouched, InputSpace.of(outside(self._gram, untouched))
            self._reduced = reduced
        return reduced[1].discriminate(task, epsilon)

    def _solvable(self, ridge: float) -> bool:
        largest = float(self._values.max())
        return largest * torch.finfo(torch.float64).eps <= _SOLVE_ERROR * ridge and ridge > 0

    def _solved(self, task: LowRank, ridge: float, v: torch.Tensor | None) -> LowRank:
        q = self._space.Q
        damping = (ridge / (self._values + ridge))[:, None]
        right = damping * (q.T @ task.V.to(q.device, torch.float64))
        if v is not None:
            span = q.T @ v
            damped = damping * span
            factor = torch.linalg.cholesky(span.T @ damped)
            right = right - damped @ torch.cholesky_solve(span.T @ right, factor)
        right = (q @ right).to(task.V.device)
        factors = recompress(task.U.double(), torch.diag(task.S.double()), right, task.rank)
        return factors.to(task.S.device, task.S.dtype)
