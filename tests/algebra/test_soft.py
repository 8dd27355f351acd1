"""Side soft: what the keep tasks moved along is damped by a ridge, not projected out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.algebra.test_discriminate import (
    FLOAT32,
    Factors,
    Largest,
    dense,
    norm,
    random_task,
    result,
    sharing,
    torch_factors,
)
from weightsurgery.algebra.discriminate import BASES, KeepSpace, discriminate
from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.errors import EditError

RIDGES = (1e-6, 1e-3, 0.1, 1.0, 30.0)


def soft(task: Factors, keeps: list[Factors], epsilon: float, basis: str = "joint") -> np.ndarray:
    space = KeepSpace.of([torch_factors(k) for k in keeps], basis)
    damped = discriminate(torch_factors(task), space, "soft", epsilon)
    assert damped.rank <= len(task[1])
    return damped.matrix().double().numpy()


def gram(keeps: list[Factors]) -> np.ndarray:
    return sum(dense(k).T @ dense(k) for k in keeps)


def ridge(c: np.ndarray, epsilon: float) -> float:
    return epsilon * np.trace(c) / len(c)


def damping(c: np.ndarray, epsilon: float) -> np.ndarray:
    rho = ridge(c, epsilon)
    return rho * np.linalg.inv(c + rho * np.eye(len(c)))


@pytest.mark.parametrize("epsilon", RIDGES)
@given(
    m=st.integers(6, 30),
    n=st.integers(6, 30),
    k=st.integers(1, 5),
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_equals_the_dense_equation(
    epsilon: float, m: int, n: int, k: int, ranks: list[int], seed: int
) -> None:
    task = random_task(m, n, k, seed)
    keeps = [random_task(m, n, rank, seed + 1 + i) for i, rank in enumerate(ranks)]
    wanted = dense(task) @ damping(gram(keeps), epsilon)
    assert norm(wanted - dense(task)) > 1e-6
    assert norm(soft(task, keeps, epsilon) - wanted) <= 1e-4 * norm(dense(task))
    each = sum(np.eye(n) - damping(gram([keep]), epsilon) for keep in keeps)
    damped = soft(task, keeps, epsilon, "sum")
    assert norm(damped - (dense(task) - dense(task) @ each)) <= 1e-4 * norm(dense(task))


@pytest.mark.parametrize("epsilon", RIDGES)
def test_is_the_one_minimum(epsilon: float) -> None:
    """Of ‖X − T‖² + Σ ‖X T_jᵀ‖² / ρ: its gradient vanishes there, and not at T or at ``right``."""
    task, keeps = random_task(30, 24, 4, 1), sharing()
    c = gram(keeps)

    def slope(x: np.ndarray) -> float:
        return norm(x - dense(task) + x @ c / ridge(c, epsilon)) * min(1.0, ridge(c, epsilon))

    assert slope(dense(task)) > 1e-2
    assert slope(soft(task, keeps, epsilon)) <= 1e-4
    assert epsilon < 0.1 or slope(result(task, keeps, "right")) > 1e-2


@pytest.mark.parametrize("basis", BASES)
def test_without_a_ridge_it_is_right(basis: str) -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    right = result(task, keeps, "right", basis)
    assert norm(soft(task, keeps, 0.1, basis) - right) > 0.01
    assert np.array_equal(soft(task, keeps, 0.0, basis), right)
    gaps = [norm(soft(task, keeps, 10.0**-n, basis) - right) for n in (2, 4, 6, 9)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] <= FLOAT32 * norm(dense(task))


@pytest.mark.parametrize("basis", BASES)
def test_with_a_large_ridge_it_is_plain_negation(basis: str) -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    gaps = [norm(soft(task, keeps, 10.0**n, basis) - dense(task)) for n in (-1, 1, 3, 8)]
    assert gaps[0] > 0.1
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] <= FLOAT32 * norm(dense(task))


def test_energy_grows_with_the_ridge_between_right_and_the_task() -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    sizes = [norm(soft(task, keeps, epsilon)) for epsilon in (0.0, *RIDGES, 1e9)]
    assert sizes[-1] > 1.05 * sizes[0]
    assert all(low <= high * (1 + FLOAT32) for low, high in itertools.pairwise(sizes))
    assert sizes[-1] <= norm(dense(task)) * (1 + FLOAT32)
    moved = [norm(soft(task, keeps, e) @ dense(keeps[0]).T) for e in (0.0, *RIDGES)]
    assert moved[0] <= 1e-4 < moved[-1] / 10  # and what keep inputs feel grows with it


def test_what_a_task_moved_more_is_kept_more() -> None:
    v = np.eye(16)[:, :3]
    u = np.eye(20)[:, :3]
    task: Factors = (u, np.ones(3), v)
    keep: Factors = (np.eye(20)[:, 5:7], np.array([10.0, 0.1]), v[:, :2])
    assert norm(result(task, [keep], "right") @ v[:, :2]) <= FLOAT32  # right: both whole
    left = np.linalg.norm(soft(task, [keep], 0.1) @ v, axis=0)
    rho = 0.1 * (100 + 0.01) / 16
    assert left == pytest.approx([rho / (100 + rho), rho / (0.01 + rho), 1.0], abs=1e-5)


def test_only_the_ratio_of_the_keep_tasks_lengths_counts() -> None:
    task, (one, two) = random_task(30, 24, 4, 1), sharing()

    def times(keep: Factors, factor: float) -> Factors:
        return keep[0], factor * keep[1], keep[2]

    first = soft(task, [one, two], 0.1)
    both = soft(task, [times(one, 1e4), times(two, 1e4)], 0.1)
    assert norm(first - both) <= FLOAT32 * norm(dense(task))
    assert norm(first - soft(task, [times(one, 3), two], 0.1)) > 0.01


@pytest.mark.parametrize("epsilon", [-1e-3, math.nan, math.inf])
def test_a_senseless_ridge_is_refused(epsilon: float) -> None:
    task = torch_factors(random_task(20, 16, 3, 1))
    with pytest.raises(EditError, match="epsilon"):
        discriminate(task, KeepSpace.of([task]), "soft", epsilon)


def test_one_decomposition_serves_all_ridges(monkeypatch: pytest.MonkeyPatch) -> None:
    task = torch_factors(random_task(60, 50, 4, 1))
    space = KeepSpace.of([torch_factors(random_task(60, 50, 3, seed)) for seed in (2, 3)])
    discriminate(task, space, "soft", 0.1)
    seen = []
    inner = torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda a, **named: seen.append(a.shape) or inner(a, **named)
    )
    for epsilon in RIDGES:
        discriminate(task, space, "soft", epsilon)
    assert seen == [(4, 4)] * len(RIDGES)  # the small core of each result alone


def test_float32_noise_beside_a_shared_direction_is_no_direction() -> None:
    """Two keep tasks that agree but for rounding: a tiny ridge takes no third direction out."""
    n, k = 400, 3
    v = np.linalg.qr(np.random.default_rng(0).standard_normal((n, k)))[0]
    u = np.linalg.qr(np.random.default_rng(1).standard_normal((n, k)))[0]
    keep: Factors = (u, np.array([3.0, 2.0, 1.0]), v)
    noisy: Factors = (u, keep[1], v * (1 + 1e-7 * np.random.default_rng(2).normal(size=v.shape)))
    task = random_task(n, n, 4, 9)
    once, twice = (soft(task, each, 1e-12) for each in ([keep], [keep, noisy]))
    assert norm(once - dense(task)) > 0.01
    assert norm(once - twice) <= FLOAT32 * norm(dense(task))


def test_nothing_square_is_formed() -> None:
    n, k = 600, 4
    rng = np.random.default_rng(0)

    def task() -> LowRank:
        u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for _ in range(2))
        return torch_factors((u, np.linspace(2, 1, k), v))

    with Largest() as seen:
        discriminate(task(), KeepSpace.of([task(), task()]), "soft")
    assert 0 < seen.numel <= 3 * k * n
