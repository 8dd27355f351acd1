"""The regression mean, which fuses changes of one matrix into one.

``X_i`` are the inputs on which change ``T_i`` matters, ``C_i = Σ x xᵀ`` over them. The mean that
answers each on its own inputs as nearly as one matrix can is, with a ridge ``ρ``,

    ``T = Σ T_i (C_i + ρ/N · I) · (Σ C_i + ρ I)⁻¹``,

the one minimum of ``Σ_i tr((T − T_i) C_i (T − T_i)ᵀ) + ρ/N · Σ_i ‖T − T_i‖²_F``, where
``tr((T − T_i) C_i (T − T_i)ᵀ) = Σ_x ‖T x − T_i x‖²``. Jin et al. 2023 (RegMean, arXiv 2212.09849),
whose weights are (in, out): ``W = (Σ X_iᵀ X_i)⁻¹ Σ X_iᵀ X_i W_i``. EUL (Chen & Yang 2023,
arXiv 2310.20150) fuses unlearning layers of several requests by it; that it is this very formula
is read from prose there. Their remedy for ill-conditioned sums, shrinking what is off the
diagonal, is not used: the ridge is.

Since ``T = M + Σ (T_i − M) C_i (Σ C_i + ρ I)⁻¹`` with ``M = mean(T_i)``,

- equal ``T_i`` give that very change, and equal ``C_i`` the plain mean, for every ridge;
- along directions without any input it is the mean, also for ``ρ = 0``;
- with inputs of different requests in orthogonal spans and ``ρ = 0``, ``T x = T_i x`` for every
  input ``x`` of request ``i``: nothing is lost;
- changes of weights or the changed weights themselves give the same: ``W + T``.
"""

from __future__ import annotations

from collections.abc import Sequence

from weightsurgery.algebra.activations import InputSpace
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError

__all__ = ["regression_mean"]


def regression_mean(
    changes: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], epsilon: float = 1e-3
) -> torch.Tensor:
    """The regression mean of changes of a matrix.

    Args:
        changes: ``T_i``, each ``(m, n)`` = (out, in), any floating dtype; at least one.
        grams: ``C_i``, each ``(n, n)``, positive semidefinite, as many as changes.
        epsilon: The ridge is ``ρ = ε · tr(Σ C_i) / n``. For 0 the sum is inverted where inputs
            are, beyond the rounding of float32 statistics.

    Returns:
        ``T``, ``(m, n)``, computed in float64; dtype and device of the first change.

    Raises:
        EditError: Shapes or numbers do not fit, ε is negative or not finite, or the sum of the
            Grams has a negative eigenvalue beyond rounding.
        NonFiniteError: NaN or infinity.
    """
    total = _checked(changes, grams, epsilon)
    first = changes[0]
    wide = [change.to(total.device, torch.float64) for change in changes]
    # Around the mean: float32 sums are exact in float64, so that equal changes come out to the bit.
    mean = torch.stack(wide).mean(0)
    pull = torch.zeros_like(mean)
    for change, gram in zip(wide, grams, strict=True):
        pull += (change - mean) @ gram.to(total.device, torch.float64)
    ridge = epsilon * float(total.diagonal().mean())
    if ridge > 0:
        ridged = total.clone()
        ridged.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not int(failed):
            return (mean + torch.cholesky_solve(pull.T, factor).T).to(first.device, first.dtype)
    space = InputSpace.of(total)
    inverse = torch.where(space.values > 0, 1 / (space.values + ridge), 0.0)
    fused = mean + (pull @ space.Q * inverse) @ space.Q.T
    return fused.to(first.device, first.dtype)


def _checked(
    changes: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], epsilon: float
) -> torch.Tensor:
    """The sum of the Grams, ``(n, n)``, float64."""
    if not 0 <= epsilon < float("inf"):
        raise EditError(f"epsilon {epsilon}", "Give a ridge from 0 on, such as 0.001.")
    if not changes or len(changes) != len(grams):
        raise EditError(
            f"{len(changes)} changes with {len(grams)} sets of statistics",
            "Give one of each for every request, at least one.",
        )
    shape = changes[0].shape
    for change, gram in zip(changes, grams, strict=True):
        if len(shape) != 2 or change.shape != shape or tuple(gram.shape) != (shape[1], shape[1]):
            raise EditError(
                f"a change of shape {list(change.shape)} beside one of {list(shape)}, with"
                f" statistics of shape {list(gram.shape)}",
                "Changes are (out, in), all alike, and statistics (in, in), from the same model.",
            )
        if not bool(torch.isfinite(change).all()) or not bool(torch.isfinite(gram).all()):
            raise NonFiniteError(
                "NaN or infinity in a change or its statistics", "Make them again."
            )
    total = grams[0].double().clone()
    for gram in grams[1:]:
        total += gram.to(total.device, torch.float64)
    return total
