from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.algebra.largest import Largest
from tests.conftest import low_rank
from weightsurgery.algebra.discriminate import (
    BASES,
    SIDES,
    SOFT_EPSILON,
    KeepSpace,
    discriminate,
)
from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.errors import EditError

# Factors are float32: a few of its eps (1.2e-7) relative to the task's norm.
FLOAT32 = 3e-6

HARD = tuple(side for side in SIDES if side != "soft")

Factors = tuple[np.ndarray, np.ndarray, np.ndarray]


def factors(matrix: np.ndarray, k: int) -> Factors:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k], s[:k], vh[:k].T


def torch_factors(factors: Factors) -> LowRank:
    return LowRank(*(torch.from_numpy(np.ascontiguousarray(x)).float() for x in factors))


def dense(factors: Factors) -> np.ndarray:
    u, s, v = factors
    return (u * s) @ v.T


def random_task(m: int, n: int, k: int, seed: int) -> Factors:
    return factors(low_rank(m, n, np.linspace(2, 1, k), seed), k)


def span_projector(columns: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(columns, 1)
    return joined @ np.linalg.pinv(joined, rcond=1e-6)


def damped(gram: np.ndarray) -> np.ndarray:
    """What the side soft takes away of each input: C (C + ρI)⁻¹."""
    rho = SOFT_EPSILON * np.trace(gram) / len(gram)
    return gram @ np.linalg.inv(gram + rho * np.eye(len(gram)))


def oracle(task: Factors, keeps: list[Factors], side: str, basis: str) -> np.ndarray:
    """The definitions, in full matrices and float64."""
    t = dense(task)
    if side == "soft":
        grams = [dense(keep).T @ dense(keep) for keep in keeps]
        return t - sum(t @ damped(c) for c in ([sum(grams)] if basis == "joint" else grams))
    if basis == "joint":
        pairs = [(span_projector([k[0] for k in keeps]), span_projector([k[2] for k in keeps]))]
    else:
        pairs = [(u @ u.T, v @ v.T) for u, _, v in keeps]
    left, right = sum(p for p, _ in pairs), sum(q for _, q in pairs)
    identity_m, identity_n = np.eye(t.shape[0]), np.eye(t.shape[1])
    if side == "right":
        return t @ (identity_n - right)
    if side == "left":
        return (identity_m - left) @ t
    if side == "both":
        return (identity_m - left) @ t @ (identity_n - right)
    if side == "shared":
        return t - sum(p @ t @ q for p, q in pairs)
    terms = [np.outer(u[:, i], v[:, i]) for u, _, v in keeps for i in range(u.shape[1])]
    if basis == "sum":
        return t - sum((t * term).sum() * term for term in terms)
    design = np.stack([term.ravel() for term in terms], 1)
    solution, *_ = np.linalg.lstsq(design, t.ravel(), rcond=1e-6)
    return t - (design @ solution).reshape(t.shape)


def norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def result(task: Factors, keeps: list[Factors], side: str, basis: str = "joint") -> np.ndarray:
    space = KeepSpace.of([torch_factors(k) for k in keeps], basis)
    return discriminate(torch_factors(task), space, side).matrix().double().numpy()


def sharing(m: int = 30, n: int = 24) -> list[Factors]:
    """Two keep tasks of rank 3 that have one rank-one term in common."""
    first, second = random_task(m, n, 3, 11), random_task(m, n, 2, 12)
    u = np.linalg.qr(np.concatenate([first[0][:, :1], second[0]], 1))[0]
    v = np.linalg.qr(np.concatenate([first[2][:, :1], second[2]], 1))[0]
    signs = np.sign((u[:, 0] @ first[0][:, 0], v[:, 0] @ first[2][:, 0]))
    u[:, 0] *= signs[0]
    v[:, 0] *= signs[1]
    return [first, (u, np.array([3.0, 2.0, 1.0]), v)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("basis", BASES)
@given(
    m=st.integers(6, 30),
    n=st.integers(6, 30),
    k=st.integers(1, 5),
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_equals_the_dense_definition(
    side: str, basis: str, m: int, n: int, k: int, ranks: list[int], seed: int
) -> None:
    task = random_task(m, n, k, seed)
    keeps = [random_task(m, n, rank, seed + 1 + i) for i, rank in enumerate(ranks)]
    actual = result(task, keeps, side, basis)
    wanted = oracle(task, keeps, side, basis)
    assert norm(wanted - dense(task)) > 1e-6  # there is something to take away
    # Random keep directions of up to 9 in 6 dimensions may nearly coincide: their condition.
    assert norm(actual - wanted) <= 1e-4 * norm(dense(task))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("basis", BASES)
def test_equals_the_dense_definition_where_keep_tasks_share(side: str, basis: str) -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    actual, wanted = result(task, keeps, side, basis), oracle(task, keeps, side, basis)
    assert norm(wanted - dense(task)) > 0.1
    assert norm(actual - wanted) <= FLOAT32 * norm(dense(task))
    assert norm(oracle(task, keeps, side, "joint") - oracle(task, keeps, side, "sum")) > 1e-3


@pytest.mark.parametrize("side", HARD)
@pytest.mark.parametrize("basis", BASES)
def test_a_task_less_itself_is_nothing(side: str, basis: str) -> None:
    task = random_task(20, 16, 4, 3)
    assert norm(dense(task)) > 1
    assert norm(result(task, [task], side, basis)) <= FLOAT32 * norm(dense(task))


@pytest.mark.parametrize("side", SIDES)
def test_tasks_with_nothing_in_common_lose_nothing(side: str) -> None:
    u, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 7)))
    v, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 7)))
    task: Factors = (u[:, :4], np.array([4.0, 3.0, 2.0, 1.0]), v[:, :4])
    keep: Factors = (u[:, 4:], np.array([9.0, 8.0, 7.0]), v[:, 4:])
    assert norm(result(task, [keep], side) - dense(task)) <= FLOAT32 * norm(dense(task))


@pytest.mark.parametrize("side", ["right", "both"])
def test_right_leaves_the_keep_inputs_unmoved(side: str) -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    inputs = np.concatenate([k[2] for k in keeps], 1) @ np.random.default_rng(0).normal(size=(6, 9))
    before, after = dense(task) @ inputs, result(task, keeps, side) @ inputs
    assert norm(before) > 0.1 * norm(inputs)  # the plain task moves their outputs
    assert norm(after) <= FLOAT32 * norm(dense(task)) * norm(inputs)


@pytest.mark.parametrize("side", ["left", "both"])
def test_left_never_points_along_a_keep_output(side: str) -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    outputs = np.concatenate([k[0] for k in keeps], 1)
    assert norm(outputs.T @ dense(task)) > 0.1
    assert norm(outputs.T @ result(task, keeps, side)) <= FLOAT32 * norm(dense(task))


def test_frobenius_is_orthogonal_to_every_keep_term() -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    after = result(task, keeps, "frobenius")
    for u, _, v in keeps:
        terms = np.einsum("ik,ij,jk->k", u, dense(task), v)
        assert np.abs(terms).max() > 1e-3
        assert np.abs(np.einsum("ik,ij,jk->k", u, after, v)).max() <= FLOAT32 * norm(dense(task))


def test_joint_empties_a_shared_direction_and_sum_does_not() -> None:
    task, keeps = random_task(30, 24, 4, 1), sharing()
    joint, summed = result(task, keeps, "right", "joint"), result(task, keeps, "right", "sum")
    shared = keeps[0][2][:, :1]
    assert np.allclose(keeps[1][2] @ (keeps[1][2].T @ shared), shared)  # both tasks have it
    size = norm(dense(task) @ shared)
    assert size > 0.05
    assert norm(joint @ shared) <= FLOAT32 * norm(dense(task))
    # Taken away twice: what is left has the size of the start, with the sign turned.
    assert norm(summed @ shared) > 0.5 * size


@pytest.mark.parametrize("side", SIDES)
def test_order_of_keep_tasks_does_not_matter(side: str) -> None:
    task = random_task(30, 24, 4, 1)
    keeps = [*sharing(), random_task(30, 24, 2, 40)]
    first, second = result(task, keeps, side), result(task, keeps[::-1], side)
    assert norm(first - dense(task)) > 0.1
    assert norm(first - second) <= FLOAT32 * norm(dense(task))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", [None, 5])
def test_keeping_a_task_twice_is_keeping_it_once(side: str, seed: int | None) -> None:
    task = random_task(30, 24, 4, 1)
    # Without a seed along the axes: exact numbers, so that what is singular is exactly singular.
    axes: Factors = (np.eye(30, 3), np.array([3.0, 2.0, 1.0]), np.eye(24, 3))
    keep = axes if seed is None else random_task(30, 24, 3, seed)
    once, twice = result(task, [keep], side), result(task, [keep, keep], side)
    assert norm(once - dense(task)) > 0.05
    assert norm(once - twice) <= FLOAT32 * norm(dense(task))
    assert norm(result(task, [keep, keep], side, "sum") - once) > 0.05  # there it counts


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("basis", BASES)
def test_rank_keeps_the_documented_bounds(side: str, basis: str) -> None:
    k, keep_ranks = 4, [3, 2]
    task = torch_factors(random_task(60, 50, k, 1))
    keeps = [torch_factors(random_task(60, 50, r, 5 + r)) for r in keep_ranks]
    remaining = discriminate(task, KeepSpace.of(keeps, basis), side)
    bounds = {"shared": 2 * k, "frobenius": k + sum(keep_ranks)}
    if basis == "sum":
        bounds["shared"] = k + sum(keep_ranks)
    assert remaining.rank <= bounds.get(side, k)
    assert remaining.rank == np.linalg.matrix_rank(remaining.matrix().double().numpy(), tol=1e-5)
    for columns in (remaining.U, remaining.V):
        gram = columns.double().T @ columns.double()
        assert float((gram - torch.eye(remaining.rank)).abs().max()) < 1e-5


def test_a_vanishing_keep_factor_carries_no_direction() -> None:
    task = random_task(20, 16, 3, 1)
    u, s, v = random_task(20, 16, 2, 2)
    weak: Factors = (u, np.array([1.0, 1e-9]), v)
    strong: Factors = (u[:, :1], np.array([1.0]), v[:, :1])
    assert norm(result(task, [weak], "right") - result(task, [(u, s, v)], "right")) > 0.1
    # Other strides, so perhaps another kernel's rounding.
    gap = result(task, [weak], "right") - result(task, [strong], "right")
    assert norm(gap) <= FLOAT32 * norm(dense(task))


@pytest.mark.parametrize("side", SIDES)
def test_a_zero_keep_task_changes_nothing(side: str) -> None:
    task = random_task(20, 16, 3, 1)
    zero: Factors = (np.eye(20, 1), np.zeros(1), np.eye(16, 1))
    assert norm(result(task, [zero], side) - dense(task)) <= FLOAT32 * norm(dense(task))


def test_other_shapes_and_names_are_refused() -> None:
    task, keep = torch_factors(random_task(20, 16, 3, 1)), torch_factors(random_task(20, 15, 3, 1))
    with pytest.raises(EditError, match=r"\(20, 15\).*\(20, 16\)"):
        discriminate(task, KeepSpace.of([keep]))
    with pytest.raises(EditError, match="upwards"):
        discriminate(task, KeepSpace.of([task]), "upwards")
    with pytest.raises(EditError, match="product"):
        KeepSpace.of([task], "product")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("basis", BASES)
def test_nothing_square_is_formed(side: str, basis: str) -> None:
    n, k = 600, 4
    rng = np.random.default_rng(0)

    def task() -> LowRank:
        u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for _ in range(2))
        return torch_factors((u, np.linspace(2, 1, k), v))

    forget, keeps = task(), [task(), task()]
    with Largest() as seen:
        forget.matrix()
    assert seen.numel == n * n  # the watch sees what it is to see
    with Largest() as seen:
        discriminate(forget, KeepSpace.of(keeps, basis), side)
    assert 0 < seen.numel < n * n / 2
    assert seen.numel <= 3 * k * n  # the factors of all tasks side by side, no more
