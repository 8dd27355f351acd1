"""Directions of a layer's input space in which a task's inputs stand out from those to keep.

``C = Σ x xᵀ`` is summed over the inputs of a linear layer of width ``n`` on the task's texts,
``K = Σ x xᵀ`` on those to keep, both per input, and ``ρ = ε · median(diag K)`` is a ridge. The
directions are the leading solutions of the generalised symmetric eigenproblem

    ``C a = λ (K + ρ I) a``,

those along which the task's inputs have most energy for what the inputs to keep have there
(Fukunaga & Koontz 1970; the quotient's form of contrastive PCA, Abid et al. 2018). A change ``B A``
whose rows ``A`` are such directions acts where the task is, and hardly where the rest is: an
adapter that starts from random rows has to learn that from its gradients. CorDA (Yang et al. 2024,
arXiv 2406.05223) and LoRA-Null (Tang et al. 2025, arXiv 2503.02659) start from one of the two sums.

The median is taken over the diagonal: a mean is that of the few dimensions of massive
activations (Sun et al. 2024, arXiv 2402.17762), and would leave the others free.
"""

from __future__ import annotations

from collections.abc import Callable

from weightsurgery.algebra.activations import check_epsilon
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError

__all__ = ["WORK_BYTES", "contrasting"]

WORK_BYTES = 24
"""Memory of :func:`contrasting` beside ``C`` and ``K``, in bytes for each of ``n²`` elements."""

# Of the largest number on the diagonal: beyond float64's rounding in the Cholesky factor.
_LEAST = 1e-10

# Columns by which the iteration's basis grows; fraction of the eigenvalues' sum it may miss.
_BLOCK, _TOLERANCE = 32, 1e-4


def contrasting(
    task: torch.Tensor, keep: torch.Tensor, k: int, epsilon: float, seed: int = 0
) -> torch.Tensor:
    """The ``k`` directions in which a task's inputs stand out most.

    Solved by the Cholesky factor ``L`` of ``K + ρ I`` and the leading eigenvectors of
    ``L⁻¹ C L⁻ᵀ`` (Golub & Van Loan, Matrix Computations, 4th ed., algorithm 8.7.1), which is not
    formed: block Krylov iteration (Musco & Musco 2015, arXiv 1504.05477, algorithm 2) multiplies
    by it. Where a basis would be nearly as wide as the matrix, all of its eigenvectors are found.

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
    del whole

    def times(block: torch.Tensor) -> torch.Tensor:
        inner = torch.linalg.solve_triangular(factor.mT, block, upper=True)
        outer: torch.Tensor = torch.linalg.solve_triangular(factor, task @ inner, upper=False)
        return outer

    vectors = _leading(times, len(task), min(k, len(task)), seed, task.device)
    rows = torch.linalg.solve_triangular(factor.mT, vectors, upper=True).T
    energy = torch.einsum("ri,ij,rj->r", rows, task, rows)
    least = 1e-12 * float(task.diagonal().sum()) * rows.square().sum(1)
    return torch.where(
        (energy > least)[:, None], rows * energy.clamp_min(1e-300).rsqrt()[:, None], 0
    )


def _leading(
    times: Callable[[torch.Tensor], torch.Tensor], n: int, k: int, seed: int, device: torch.device
) -> torch.Tensor:
    """Leading eigenvectors ``(n, k)`` of a positive semidefinite operator on ``(n, b)`` blocks."""
    width = max(_BLOCK, k)
    generator = torch.Generator("cpu").manual_seed(seed)
    block = torch.randn(n, width, generator=generator, dtype=torch.float64).to(device)
    basis = images = block[:, :0]
    while 4 * (basis.shape[1] + width) <= 3 * n:
        for _ in range(2):  # once more: where nothing was left, rounding points back inside
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        image = times(block)
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        values, mixing = _top(basis.T @ images, k)
        away = (images @ mixing - basis @ (mixing * values)).square().sum(0)
        # A Ritz value falls short by at most ‖residual‖² / gap.
        if float((away / values.clamp_min(1e-300)).sum()) <= _TOLERANCE * float(values.sum()):
            return basis @ mixing
        block = image
    return _top(times(torch.eye(n, dtype=torch.float64, device=device)), k)[1]


def _top(matrix: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest eigenvalues of a nearly symmetric matrix, descending, and their vectors."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.flip(0)[:k].clamp_min(0), vectors.flip(1)[:, :k]
