"""Directions of a layer's input space in which a task stands out from what is to be kept.

``C = Σ x xᵀ`` sums up what a linear layer of input width ``n`` is given on the task's texts,
``K = Σ x xᵀ`` on those to keep, both per input, and ``ρ = ε · median(diag K)`` is a ridge. The
directions are the leading solutions of the generalised symmetric eigenproblem

    ``C a = λ (K + ρ I) a``,

those along which the task's inputs have most energy for what the inputs to keep have there
(Fukunaga & Koontz 1970; the quotient's form of contrastive PCA, Abid et al. 2018). A change ``B A``
whose rows ``A`` are such directions acts where the task is, and hardly where the rest is: an
adapter that starts from random rows has to learn that from its gradients. CorDA (Yang et al. 2024,
arXiv 2406.05223) and LoRA-Null (Tang et al. 2025, arXiv 2503.02659) start from one of the two sums.

The median is of what is on the diagonal: a mean is that of the few dimensions of massive
activations (Sun et al. 2024, arXiv 2402.17762), and would leave the others free.
"""

from __future__ import annotations

from weightsurgery.algebra.activations import check_epsilon
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError

__all__ = ["contrasting"]

# Of the largest number on the diagonal: beyond float64's rounding in the Cholesky factor.
_LEAST = 1e-10


def contrasting(
    task: torch.Tensor, keep: torch.Tensor, k: int, epsilon: float, seed: int = 0
) -> torch.Tensor:
    """The ``k`` directions in which a task's inputs stand out most.

    Solved by the Cholesky factor ``L`` of ``K + ρ I`` and the leading eigenvectors of
    ``L⁻¹ C L⁻ᵀ`` (Golub & Van Loan, Matrix Computations, 4th ed., algorithm 8.7.1).

    Args:
        task: ``C``, ``(n, n)``, float64, per input of the task.
        keep: ``K``, likewise, per input to keep; may be all zero.
        k: How many; fewer where ``n`` is less.
        epsilon: ε > 0.
        seed: Of the iteration that finds eigenvectors of wide matrices.

    Returns:
        Directions in rows, ``(min(k, n), n)``, float64, on the device of ``task``, those that stand
        out most first; each with ``aᵀ C a = 1``, but for those where the task has no energy, which
        are zero.

    Raises:
        EditError: Other shapes, or ε is not above zero.
        NonFiniteError: NaN or infinity.
    """
    check_epsilon(epsilon)
    if task.ndim != 2 or task.shape != keep.shape or task.shape[0] != task.shape[1]:
        raise EditError(
            f"sums of inputs of shapes {list(task.shape)} and {list(keep.shape)}",
            "They must be square, and of one layer.",
        )
    if epsilon == 0:
        raise EditError("epsilon 0", "Give a ridge above 0, such as 0.1; it is relative.")
    task, keep = task.double(), keep.double()
    if not bool(torch.isfinite(task).all() and torch.isfinite(keep).all()):
        raise NonFiniteError("NaN or infinity in sums of inputs", "Check the model.")
    diagonal = keep.diagonal()
    ridge = max(epsilon * float(diagonal.median()), _LEAST * float(diagonal.max())) or 1.0
    whole = keep.clone()
    whole.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(whole)
    half = torch.linalg.solve_triangular(factor, task, upper=False)
    reduced = torch.linalg.solve_triangular(factor, half.T, upper=False)
    found = truncated_svd(((reduced + reduced.T) / 2).float(), Rank(k), seed=seed).factors
    rows = torch.linalg.solve_triangular(factor.T, found.U.double(), upper=True).T
    energy = torch.einsum("ri,ij,rj->r", rows, task, rows)
    least = 1e-12 * float(task.diagonal().sum()) * rows.square().sum(1)
    return torch.where(
        (energy > least)[:, None], rows * energy.clamp_min(1e-300).rsqrt()[:, None], 0
    )
