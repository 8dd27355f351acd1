"""Directions in which a task's inputs stand out, beside a float64 NumPy oracle."""

import numpy
import pytest
import torch

from weightsurgery.algebra.contrast import contrasting
from weightsurgery.errors import EditError, NonFiniteError


def gram(count, width, seed, *, spread=1.0):
    """``Σ x xᵀ / count`` of inputs whose dimensions have spectra as steep as ``spread``."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, dtype=torch.float64, generator=rng)
    x *= torch.logspace(0, -spread, width, dtype=torch.float64)
    return x.T @ x / count


def quotient(rows, task, keep, ridge):
    up = torch.einsum("ri,ij,rj->r", rows, task, rows)
    return up / (torch.einsum("ri,ij,rj->r", rows, keep, rows) + ridge * rows.square().sum(1))


def oracle(task, keep, ridge):
    """Generalised eigenvalues, descending: those of ``R⁻¹ C R⁻¹`` with ``R`` the square root."""
    values, vectors = numpy.linalg.eigh(keep.numpy() + ridge * numpy.eye(len(keep)))
    root = vectors @ numpy.diag(values**-0.5) @ vectors.T
    return numpy.linalg.eigvalsh(root @ task.numpy() @ root)[::-1].copy()


@pytest.mark.parametrize("width", [12, 300])
def test_they_solve_the_generalised_eigenproblem(width):
    task, keep = gram(40, width, 0), gram(500, width, 1, spread=0.5)
    ridge = 0.1 * float(keep.diagonal().median())
    rows = contrasting(task, keep, 5, 0.1)
    quotients = quotient(rows, task, keep, ridge)
    assert numpy.allclose(quotients, oracle(task, keep, ridge)[:5], rtol=1e-5)
    whole = keep + ridge * torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(rows @ task, quotients[:, None] * (rows @ whole), rtol=0, atol=2e-3)
    torch.testing.assert_close(rows @ task @ rows.T, torch.eye(5).double(), rtol=0, atol=2e-3)


def test_they_stand_out_where_the_strongest_directions_do_not():
    """What task and keep share is strong in both; the leading eigenvectors of the task are that."""
    shared, alone = torch.eye(20, dtype=torch.float64)[:2]
    task = 100 * torch.outer(shared, shared) + torch.outer(alone, alone) + 1e-3 * torch.eye(20)
    keep = 100 * torch.outer(shared, shared) + 1e-3 * torch.eye(20, dtype=torch.float64)
    strongest = torch.linalg.eigh(task).eigenvectors[:, -1:].T
    assert quotient(strongest, task, keep, 1e-4).item() < 1.01
    directions = contrasting(task, keep, 1, 0.1)
    assert quotient(directions, task, keep, 1e-4).item() > 500
    assert torch.nn.functional.cosine_similarity(directions[0], alone, dim=0).abs() > 0.999


def test_one_massive_dimension_does_not_open_the_others():
    """With a ridge on the mean, what is kept in ordinary dimensions would not count."""
    task, keep = gram(40, 30, 0), gram(500, 30, 1)
    quiet = contrasting(task, keep, 4, 0.1)
    loud = keep.clone()
    loud[7, 7] += 1e6
    directions = contrasting(task, loud, 4, 0.1)
    shares = [float(torch.einsum("ri,ij,rj->r", a, keep, a).mean()) for a in (quiet, directions)]
    assert shares[1] < 2 * shares[0]
    assert directions[:, 7].abs().max() < 1e-3 * directions.abs().max() < quiet[:, 7].abs().max()


def test_directions_without_the_task_are_zero():
    one = torch.outer(torch.arange(5.0), torch.arange(5.0)).double()
    rows = contrasting(one, torch.zeros(5, 5, dtype=torch.float64), 9, 0.1)
    assert rows.shape == (5, 5)
    assert rows[0] @ one @ rows[0] == pytest.approx(1)
    assert not rows[1:].any()
    assert not contrasting(torch.zeros_like(one), one, 2, 0.1).any()


def test_other_input_is_refused():
    square = torch.eye(3, dtype=torch.float64)
    for task, keep, epsilon, why in (
        (square, torch.eye(4), 0.1, "shapes"), (square[0], square[0], 0.1, "shapes"),
        (square, square, 0, "epsilon 0"), (square, square, -1, "epsilon -1"),
    ):  # fmt: skip
        with pytest.raises(EditError, match=why):
            contrasting(task, keep, 1, epsilon)
    with pytest.raises(NonFiniteError, match="NaN"):
        contrasting(square, square * torch.nan, 1, 0.1)
