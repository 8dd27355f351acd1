from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from weightsurgery.algebra.discriminate import cosine, inner_product, overlap, principal_angles
from weightsurgery.algebra.lowrank import LowRank, Rank
from weightsurgery.algebra.svd import truncated_svd


def orthonormal(d: int, p: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, p)))[0]


@given(d=st.integers(2, 30), p=st.integers(1, 8), q=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_angles_are_scipys(d: int, p: int, q: int, seed: int) -> None:
    a, b = orthonormal(d, min(p, d), seed), orthonormal(d, min(q, d), seed + 1)
    angles = principal_angles(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(angles, np.sort(subspace_angles(a, b)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-9, 1e-5, 0.7, 0.8, np.pi / 2 - 1e-9, np.pi / 2])
def test_planted_angles_are_found_also_near_zero(angle: float) -> None:
    basis = orthonormal(20, 4, 0)
    a = basis[:, :2]
    b = np.stack([basis[:, 0], np.cos(angle) * basis[:, 1] + np.sin(angle) * basis[:, 2]], 1)
    angles = principal_angles(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(angles, [0, angle], rtol=0, atol=1e-15 * 20)


@given(d=st.integers(2, 25), p=st.integers(1, 6), q=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_overlap_is_the_mean_squared_cosine(d: int, p: int, q: int, seed: int) -> None:
    a, b = orthonormal(d, min(p, d), seed), orthonormal(d, min(q, d), seed + 1)
    wanted = (np.cos(subspace_angles(a, b)) ** 2).mean()
    assert overlap(*map(torch.from_numpy, (a, b))) == pytest.approx(wanted, abs=1e-12)


def test_overlap_of_nested_and_of_orthogonal_subspaces() -> None:
    basis = torch.from_numpy(orthonormal(20, 6, 1))
    assert overlap(basis[:, :2], basis) == pytest.approx(1, abs=1e-12)
    assert overlap(basis[:, :3], basis[:, 3:]) == pytest.approx(0, abs=1e-12)
    assert overlap(basis[:, :0], basis) == 0


def test_random_subspaces_overlap_by_their_dimension() -> None:
    d, p, q = 64, 4, 16
    overlaps = [
        overlap(*(torch.from_numpy(orthonormal(d, k, 2 * i + j)) for j, k in enumerate((p, q))))
        for i in range(200)
    ]
    error = np.std(overlaps) / np.sqrt(len(overlaps))
    assert abs(np.mean(overlaps) - q / d) < 4 * error  # four standard errors


def test_inner_product_and_cosine_are_those_of_the_matrices() -> None:
    a, b = (torch.randn(12, 9) for _ in range(2))
    first, second = (truncated_svd(x, Rank(9)).factors for x in (a, b))
    x, y = a.double().numpy(), b.double().numpy()
    assert inner_product(first, second) == pytest.approx((x * y).sum(), rel=1e-4)
    wanted = (x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y))
    assert cosine(first, second) == pytest.approx(wanted, rel=1e-4)
    assert cosine(first, first) == pytest.approx(1, abs=1e-6)
    negated = LowRank(-first.U, first.S, first.V)
    assert cosine(first, negated) == pytest.approx(-1, abs=1e-6)
    zero = LowRank(first.U[:, :1], torch.zeros(1), first.V[:, :1])
    assert cosine(first, zero) == 0
