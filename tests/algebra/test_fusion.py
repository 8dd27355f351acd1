"""The regression mean against its definition in float64 NumPy, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightsurgery.algebra.fusion import regression_mean
from weightsurgery.errors import EditError, NonFiniteError

# Results are float32; the ridge of 1e-3 bounds the condition of the solve by n / 1e-3.
FLOAT32 = 1e-6

M, N = 7, 10


def data(requests: int, samples: int = 30, seed: int = 0) -> tuple[list[np.ndarray], ...]:
    """Changes ``(M, N)`` and inputs ``(samples, N)`` of some requests."""
    rng = np.random.default_rng(seed)
    changes = [rng.standard_normal((M, N)).astype(np.float32) for _ in range(requests)]
    inputs = [rng.standard_normal((samples, N)) * rng.uniform(0.2, 3, N) for _ in range(requests)]
    return [c.astype(np.float64) for c in changes], inputs


def fused(changes: list[np.ndarray], inputs: list[np.ndarray], epsilon: float) -> np.ndarray:
    fusion = regression_mean(
        [torch.from_numpy(c).float() for c in changes],
        [torch.from_numpy(x.T @ x) for x in inputs],
        epsilon,
    )
    assert fusion.dtype == torch.float32
    return fusion.double().numpy()


def ridge_of(inputs: list[np.ndarray], epsilon: float) -> float:
    return epsilon * sum(float((x * x).sum()) for x in inputs) / N


def outputs_error(t: np.ndarray, changes: list[np.ndarray], inputs: list[np.ndarray]) -> float:
    """``Σ_i Σ_x ‖T x − T_i x‖²``."""
    return sum(float(np.square(x @ (t - c).T).sum()) for c, x in zip(changes, inputs, strict=True))


@given(requests=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_is_the_published_formula(requests: int, seed: int) -> None:
    """``W = (Σ XᵀX)⁻¹ Σ XᵀX W_i`` for weights that are (in, out)."""
    changes, inputs = data(requests, seed=seed)
    grams = [x.T @ x for x in inputs]
    wanted = np.linalg.solve(
        sum(grams), sum(g @ c.T for g, c in zip(grams, changes, strict=True))
    ).T
    mean = np.mean(changes, 0)
    if requests > 1:
        assert np.linalg.norm(wanted - mean) > 0.1
    assert np.linalg.norm(fused(changes, inputs, 0.0) - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 1.0])
def test_minimises_the_squared_errors_of_the_outputs(epsilon: float) -> None:
    changes, inputs = data(3)
    ridge = ridge_of(inputs, epsilon)
    fusion = fused(changes, inputs, epsilon)

    def gradient(t: np.ndarray) -> np.ndarray:
        terms = [
            (t - c) @ (x.T @ x + ridge / 3 * np.eye(N))
            for c, x in zip(changes, inputs, strict=True)
        ]
        return 2 * sum(terms)

    mean = np.mean(changes, 0)
    assert np.linalg.norm(gradient(mean)) > 1  # the plain mean is no minimum
    assert np.linalg.norm(gradient(fusion)) <= 1e-5 * np.linalg.norm(gradient(mean))
    if epsilon == 0:
        best = outputs_error(fusion, changes, inputs)
        assert best < outputs_error(mean, changes, inputs)
        rng = np.random.default_rng(1)
        for _ in range(20):
            nearby = fusion + 0.01 * rng.standard_normal(fusion.shape)
            assert outputs_error(nearby, changes, inputs) > best


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("requests", [1, 2, 3, 5])
def test_equal_changes_give_that_change_to_the_bit(requests: int, epsilon: float) -> None:
    changes, inputs = data(requests + 1)
    same = [changes[0]] * requests
    assert not np.array_equal(fused([*same, changes[1]], inputs, epsilon), changes[0])
    assert np.array_equal(fused(same, inputs[:requests], epsilon), changes[0])


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 10.0])
def test_equal_statistics_give_the_mean(epsilon: float) -> None:
    changes, inputs = data(3)
    mean = np.mean(changes, 0)
    assert np.linalg.norm(fused(changes, inputs, epsilon) - mean) > 0.1 / (1 + epsilon)
    fusion = fused(changes, [inputs[0]] * 3, epsilon)
    assert np.linalg.norm(fusion - mean) <= FLOAT32 * np.linalg.norm(changes)


@pytest.mark.parametrize("samples", [2, 4])
def test_without_ridge_requests_of_orthogonal_inputs_lose_nothing(samples: int) -> None:
    changes, _ = data(2)
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((N, N)))[0]
    inputs = [basis[:, :samples].T, 3 * basis[:, samples : 2 * samples].T]
    mean = np.mean(changes, 0)
    assert outputs_error(mean, changes, inputs) > 1
    fusion = fused(changes, inputs, 0.0)
    assert outputs_error(fusion, changes, inputs) <= 1e-10
    # Where nobody has inputs it is the mean.
    outside = basis[:, 2 * samples :]
    assert outside.shape[1] >= 2
    assert np.linalg.norm((fusion - mean) @ outside) <= FLOAT32 * np.linalg.norm(mean)


def test_a_large_ridge_is_the_mean_and_a_small_one_none() -> None:
    changes, inputs = data(3)
    mean, exact = np.mean(changes, 0), fused(changes, inputs, 0.0)
    assert np.linalg.norm(exact - mean) > 0.1
    distances = [
        np.linalg.norm(fused(changes, inputs, each) - mean) for each in (0.0, 1e-3, 1.0, 1e3)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-2 * distances[0]
    near = fused(changes, inputs, 1e-7)
    assert np.linalg.norm(near - exact) <= 1e-4 * np.linalg.norm(exact)


def test_changes_and_changed_weights_fuse_alike() -> None:
    changes, inputs = data(3)
    base = np.random.default_rng(9).standard_normal((M, N)).astype(np.float32).astype(np.float64)
    fusion = fused(changes, inputs, 1e-3)
    weights = regression_mean(
        [torch.from_numpy(base + c) for c in changes],
        [torch.from_numpy(x.T @ x) for x in inputs],
    )
    assert np.linalg.norm(fusion) > 1
    assert np.linalg.norm(weights.numpy() - base - fusion) <= FLOAT32 * np.linalg.norm(base)


def test_inputs_of_more_weight_pull_harder() -> None:
    changes, inputs = data(2)
    plain = fused(changes, inputs, 1e-3)
    pulled = fused(changes, [inputs[0], 100 * inputs[1]], 1e-3)
    assert np.linalg.norm(plain - changes[1]) > 0.5
    assert np.linalg.norm(pulled - changes[1]) < 0.02 * np.linalg.norm(plain - changes[1])


def test_statistics_with_float32_noise_and_no_full_rank_are_solved() -> None:
    changes, inputs = data(2, samples=3)
    grams = [torch.from_numpy((x.T @ x).astype(np.float32)).double() for x in inputs]
    fusion = regression_mean([torch.from_numpy(c).float() for c in changes], grams, 0.0)
    assert torch.isfinite(fusion).all()
    assert float(fusion.norm()) < 10 * np.linalg.norm(changes)
    assert outputs_error(fusion.double().numpy(), changes, inputs) < 1e-3  # 6 inputs in 10 dims


def test_no_inputs_at_all_leave_the_mean() -> None:
    changes, inputs = data(2)
    mean = np.mean(changes, 0)
    assert np.linalg.norm(fused(changes, inputs, 1e-3) - mean) > 0.1
    fusion = fused(changes, [np.zeros((1, N))] * 2, 1e-3)
    assert np.linalg.norm(fusion - mean) <= FLOAT32 * np.linalg.norm(mean)


def test_what_does_not_fit_is_refused() -> None:
    change, gram = torch.ones(M, N), torch.eye(N)
    with pytest.raises(EditError, match="2 changes with 1"):
        regression_mean([change, change], [gram])
    with pytest.raises(EditError, match="0 changes"):
        regression_mean([], [])
    with pytest.raises(EditError, match="statistics of shape"):
        regression_mean([change], [torch.eye(M)])
    with pytest.raises(EditError, match="beside one of"):
        regression_mean([change, torch.ones(N, M)], [gram, gram])
    with pytest.raises(EditError, match="epsilon -1"):
        regression_mean([change], [gram], -1)
    with pytest.raises(EditError, match="negative eigenvalue"):
        regression_mean([change], [-gram], 0.0)
    with pytest.raises(NonFiniteError):
        regression_mean([change * float("nan")], [gram])
