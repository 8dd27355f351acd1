"""Keep by activations: damp a change along the inputs to keep.

``C = Σ x xᵀ`` is summed over the inputs of a linear layer of width ``n`` on the data to keep, and
``ρ = ε · tr(C) / n`` is a ridge. The damped change is

    ``T' = T M``,   ``M = ρ (C + ρ I)⁻¹``,

the one minimum of ``‖X − T‖²_F + tr(X C Xᵀ) / ρ``: near to ``T``, and small on the inputs,
``tr(X C Xᵀ) = Σ ‖X x‖²``. ``M`` is symmetric with ``0 ≤ M ≤ I``: an eigenvector of ``C`` with
eigenvalue λ is scaled by ``ρ / (λ + ρ)``. Hence, for every ``T``,

- ``‖T'‖ ≤ ‖T‖``, and ``‖T'‖`` grows with ε;
- ``Σ ‖T'x‖² ≤ Σ ‖Tx‖²`` and ``Σ ‖T'x‖² ≤ ρ ‖T‖² / 4`` over the inputs that were summed (over all
  of them: a single ``‖T'x‖`` may grow);
- only the ratios of ``C`` count: scaling it changes nothing.

As ε→0 this is the projection on the null space of ``C``, as in AlphaEdit (Fang et al. 2024, arXiv
2410.02355, ``P = Û Ûᵀ``): ``T'x = 0`` for every ``x`` in the span of the inputs. With ``C = 0``
there is nothing to keep, and ``T' = T``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightsurgery.algebra.lowrank import LowRank, recompress
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError

__all__ = ["InputSpace", "check_epsilon", "keep_inputs", "outside", "response", "work_bytes"]

# Relative error that a Cholesky solve may have: below the rounding of float32 factors.
_SOLVE_ERROR = 1e-8


@dataclass(frozen=True)
class InputSpace:
    """The span of a layer's inputs, decomposed once for any number of ridges and changes.

    Attributes:
        Q: Eigenvectors of ``C`` in columns, ``(n, n)``, float64.
        values: Eigenvalues, ``(n,)``, float64, ascending; zero up to ``floor``.
        floor: Eigenvalues up to here are within the rounding of the float32 numbers in ``C``.
    """

    Q: torch.Tensor
    values: torch.Tensor
    floor: float

    @classmethod
    def of(cls, gram: torch.Tensor, device: torch.device | str | None = None) -> InputSpace:
        """Decompose ``C``.

        Args:
            gram: Shape ``(n, n)``, positive semidefinite, float32 or float64; of its two equal
                halves the lower one is read.
            device: Where to compute; by default where ``gram`` is.

        Raises:
            EditError: Not square, or no sum of ``x xᵀ``: a negative eigenvalue beyond rounding.
            NonFiniteError: NaN or infinity.
        """
        wide = _checked(gram, device)
        # Rounding every entry to float32 moves no eigenvalue by more than half of this (Weyl).
        floor = torch.finfo(torch.float32).eps * float(wide.norm())
        values, vectors = torch.linalg.eigh(wide)
        if float(values[0]) < -16 * floor:  # float32 products add their own rounding
            raise EditError(
                f"activation statistics with the negative eigenvalue {float(values[0]):.3g}"
                f" (the largest is {float(values[-1]):.3g})",
                "They must be sums of x xᵀ: gather them again.",
            )
        return cls(vectors, torch.where(values > floor, values, 0.0), floor)

    def damping(self, epsilon: float) -> torch.Tensor:
        """``ρ / (λ + ρ)`` for each eigenvalue; for ε = 0 its limit, 1 where λ vanishes, else 0.

        Raises:
            EditError: ε is negative or not finite.
        """
        check_epsilon(epsilon)
        ridge = epsilon * float(self.values.mean())
        if ridge > 0:
            return ridge / (self.values + ridge)
        return (self.values == 0).to(self.values.dtype)

    def apply(self, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        """``x M`` for rows ``x``.

        Args:
            x: Shape ``(..., n)``, any floating dtype; moved to the decomposition's device.
            epsilon: ε ≥ 0.

        Returns:
            The same shape, dtype and device, computed in float64.

        Raises:
            EditError: Another width, or ε is negative or not finite.
        """
        _check_width(x.shape[-1], self.values.numel())
        wide = x.to(self.Q.device, torch.float64)
        return ((wide @ self.Q * self.damping(epsilon)) @ self.Q.T).to(x.device, x.dtype)

    def discriminate(self, task: LowRank, epsilon: float) -> LowRank:
        """``T M`` as factors, of rank at most that of ``T``; see :meth:`apply`."""
        return _with_inputs(task, self.apply(task.V.double().T, epsilon).T)


def keep_inputs(
    task: LowRank, gram: torch.Tensor, epsilon: float, device: torch.device | str | None = None
) -> LowRank:
    """``T M`` as factors, for one ridge: by Cholesky, several times cheaper than ``eigh``.

    Where the ridge is so small that solving would lose digits that float32 holds, or zero, the
    eigenvectors are taken after all: they separate rounding in ``C`` from small inputs.

    Args:
        task: ``T``, rank ``k``.
        gram: ``C``, ``(n, n)``; see :meth:`InputSpace.of`.
        epsilon: ε ≥ 0.
        device: Where to compute; by default where ``gram`` is.

    Returns:
        Rank at most ``k``; dtype and device of ``task``.

    Raises:
        EditError: Another width, a senseless ε, or no sum of ``x xᵀ``.
        NonFiniteError: NaN or infinity in ``C``.
    """
    check_epsilon(epsilon)
    _check_width(task.shape[1], gram.shape[-1])
    wide = _checked(gram, device)
    ridge = epsilon * float(wide.diagonal().mean())
    if _by_cholesky(wide.shape[0], epsilon) and ridge > 0:
        wide = wide.clone() if wide is gram else wide
        wide.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(wide)
        if not int(failed):
            right = ridge * task.V.to(wide.device, torch.float64)
            solved = torch.cholesky_solve(right, factor)
            return _with_inputs(task, solved.to(task.V.device))
    return InputSpace.of(gram, device).discriminate(task, epsilon)


def outside(gram: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``(I − P) C (I − P)`` with ``P = V Vᵀ``: the inputs outside a span that is kept already.

    A change that vanishes on span ``V`` still does after the ridge of this matrix, exactly.

    Args:
        gram: ``C``, ``(n, n)``, float64.
        directions: ``V``, ``(n, q)``, orthonormal columns.

    Returns:
        Shape ``(n, n)``, float64, on the device of ``gram``.
    """
    v = directions.to(gram.device, torch.float64)
    v = torch.linalg.qr(v).Q if v.shape[1] else v  # float32 columns are orthonormal to 1e-7 alone
    half = gram.double() - (gram.double() @ v) @ v.T
    return half - v @ (v.T @ half)


def response(task: LowRank, gram: torch.Tensor) -> float:
    """``Σ ‖T x‖² = tr(T C Tᵀ)``: the size of a change's outputs on the inputs."""
    right = task.V.to(gram.device, torch.float64) * task.S.to(gram.device, torch.float64)
    return max(0.0, float(((gram.double() @ right) * right).sum()))


def work_bytes(width: int) -> int:
    """Peak memory of :func:`keep_inputs` with its float64 ``C`` (measured on a CPU)."""
    return 36 * width**2


def _by_cholesky(width: int, epsilon: float) -> bool:
    """Whether solving is accurate: ``C + ρ I`` has a condition number of at most ``1 + n / ε``."""
    return width * torch.finfo(torch.float64).eps <= _SOLVE_ERROR * epsilon


def _with_inputs(task: LowRank, right: torch.Tensor) -> LowRank:
    """``U diag(S) Rᵀ`` as an SVD again."""
    factors = recompress(task.U.double(), torch.diag(task.S.double()), right, task.rank)
    return factors.to(task.S.device, task.S.dtype)


def _checked(gram: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """A finite float64 matrix.

    Raises:
        EditError: Not square.
        NonFiniteError: NaN or infinity.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.numel():
        raise EditError(
            f"activation statistics of shape {list(gram.shape)}", "They must be square matrices."
        )
    if not bool(torch.isfinite(gram).all()):
        raise NonFiniteError(
            "NaN or infinity in activation statistics", "Gather them again; check the model."
        )
    return gram.to(gram.device if device is None else device, torch.float64)


def check_epsilon(epsilon: float) -> None:
    """Check a ridge.

    Raises:
        EditError: It is negative or not finite.
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise EditError(
            f"epsilon {epsilon}", "Give a ridge from 0 (exact) on, such as 0.001; it is relative."
        )


def _check_width(columns: int, width: int) -> None:
    if columns != width:
        raise EditError(
            f"activation statistics of width {width} for a change of {columns} columns",
            "Gather them on the model that is edited.",
        )
