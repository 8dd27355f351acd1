from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import exact
from weightsurgery.algebra.activations import (
    InputSpace,
    keep_inputs,
    outside,
    response,
    work_bytes,
)
from weightsurgery.algebra.discriminate import KeepSpace, discriminate
from weightsurgery.algebra.lowrank import LowRank, Rank, orth
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.errors import EditError, NonFiniteError

M, N, K = 9, 14, 5
EPSILONS = [1e-12, 1e-6, 1e-3, 0.1, 10.0]


def task_of(seed: int, m: int = M, n: int = N, k: int = K) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return truncated_svd(torch.randn(m, n, generator=generator), Rank(k)).factors


def inputs_of(seed: int, tokens: int, n: int = N) -> np.ndarray:
    """Inputs whose size falls from direction to direction, as a model's does; in columns."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return turned @ (rng.standard_normal((n, tokens)) * np.logspace(0, -2, n)[:, None])


def gram_of(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x @ x.T)


def multiplier(x: np.ndarray, epsilon: float) -> np.ndarray:
    """The oracle: ``ρ (C + ρ I)⁻¹``, inverted as it stands."""
    c = x @ x.T
    ridge = epsilon * np.trace(c) / len(c)
    return ridge * np.linalg.inv(c + ridge * np.eye(len(c)))


def norm(task: LowRank) -> float:
    return task.energy**0.5


# 1e-12 leaves the oracle's inverse seven digits of its own sixteen.
def close(actual: LowRank, wanted: np.ndarray, epsilon: float = 1.0) -> None:
    np.testing.assert_allclose(
        exact(actual.matrix()), wanted, rtol=0, atol=3e-6 if epsilon > 1e-9 else 1e-3
    )


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("tokens", [200, 6])
def test_both_ways_are_the_oracle(epsilon: float, tokens: int) -> None:
    task, x = task_of(1), inputs_of(2, tokens)
    t = exact(task.matrix())
    wanted = t @ multiplier(x, epsilon)
    assert np.abs(wanted - t).max() > 1e-3  # before: another matrix
    space = InputSpace.of(gram_of(x))
    close(space.discriminate(task, epsilon), wanted, epsilon)
    close(keep_inputs(task, gram_of(x), epsilon), wanted, epsilon)
    rows = space.apply(task.matrix(), epsilon)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(exact(rows), wanted, rtol=0, atol=3e-6 if epsilon > 1e-9 else 1e-3)


def test_factors_stay_factors() -> None:
    task, x = task_of(1), inputs_of(2, 200)
    for damped in (
        keep_inputs(task, gram_of(x), 0.1),
        InputSpace.of(gram_of(x)).discriminate(task, 0.1),
    ):
        assert damped.rank <= task.rank
        assert damped.S.dtype == torch.float32
        assert bool((damped.S[:-1] >= damped.S[1:]).all())
        for columns in (damped.U, damped.V):
            torch.testing.assert_close(
                columns.T @ columns, torch.eye(damped.rank), rtol=0, atol=1e-5
            )


def test_rows_of_any_shape() -> None:
    x = inputs_of(2, 200)
    space = InputSpace.of(gram_of(x))
    batch = torch.randn(2, 3, N, dtype=torch.float64)
    damped = space.apply(batch, 1e-3)
    assert damped.shape == batch.shape
    np.testing.assert_allclose(exact(damped), exact(batch) @ multiplier(x, 1e-3), atol=1e-12)
    np.testing.assert_allclose(exact(space.apply(batch[0, 0], 1e-3)), exact(damped[0, 0]))


@given(seed=st.integers(0, 999), epsilon=st.sampled_from(EPSILONS), tokens=st.integers(1, 40))
def test_what_shrinks(seed: int, epsilon: float, tokens: int) -> None:
    """‖T'‖ ≤ ‖T‖, Σ‖T'x‖² ≤ Σ‖Tx‖², Σ‖T'x‖² ≤ ρ‖T‖²/4, and ‖T'‖ grows with ε."""
    task, x = task_of(seed), inputs_of(seed + 1, tokens)
    gram = gram_of(x)
    damped = keep_inputs(task, gram, epsilon)
    slack = 1 + 1e-5
    assert norm(damped) <= norm(task) * slack
    felt = np.square(exact(damped.matrix()) @ x).sum()
    before = np.square(exact(task.matrix()) @ x).sum()
    ridge = epsilon * float(gram.trace()) / N
    # Factors are float32: what they round off is felt too.
    noise = (1e-6 * norm(task)) ** 2 * float(gram.trace())
    assert felt <= before * slack + noise
    assert felt <= ridge * task.energy / 4 * slack + noise
    assert response(damped, gram) == pytest.approx(felt, rel=1e-4, abs=noise)
    assert response(task, gram) == pytest.approx(before, rel=1e-4)
    assert norm(keep_inputs(task, gram, 3 * epsilon)) >= norm(damped) / slack


def test_a_single_input_may_feel_more() -> None:
    """Why the theorem speaks of sums: M turns some x out of the null space of T."""
    c = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    row = InputSpace.of(c).apply(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.1)
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)  # T x = 0
    assert abs(float(row[0] @ x)) > 0.01


@given(seed=st.integers(0, 999), epsilon=st.sampled_from([1e-3, 0.1, 10.0]))
def test_it_is_the_least_of_distance_and_response(seed: int, epsilon: float) -> None:
    """T' minimises ‖X − T‖² + Σ‖Xx‖² / ρ: whatever is added costs."""
    x = inputs_of(seed, 30)
    c = x @ x.T
    ridge = epsilon * np.trace(c) / N
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((M, N))

    def cost(matrix: np.ndarray) -> float:
        return float(np.square(matrix - t).sum() + np.trace(matrix @ c @ matrix.T) / ridge)

    best = exact(InputSpace.of(gram_of(x)).apply(torch.from_numpy(t), epsilon))
    assert cost(best) < cost(t)
    assert cost(best) < cost(np.zeros_like(t))
    for _ in range(5):
        assert cost(best) < cost(best + 1e-3 * rng.standard_normal(t.shape))


def test_only_the_ratios_of_the_inputs_count() -> None:
    task, gram = task_of(1), gram_of(inputs_of(2, 200))
    once = keep_inputs(task, gram, 1e-3)
    assert norm(once) < 0.9 * norm(task)
    for factor in (1e-9, 1e9):
        close(keep_inputs(task, factor * gram, 1e-3), exact(once.matrix()))


@pytest.mark.parametrize("stored", [torch.float64, torch.float32])
def test_in_the_limit_it_is_the_projection_on_the_null_space(stored: torch.dtype) -> None:
    """T'x = 0 on the span of the inputs, P² = P, and the rest is left alone."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((N, 6))
    task, gram = task_of(1, k=M), gram_of(x).to(stored)
    t = exact(task.matrix())
    assert np.abs(t @ x).max() > 1
    q, _ = np.linalg.qr(x)
    wanted = t @ (np.eye(N) - q @ q.T)
    space = InputSpace.of(gram)
    assert sorted(space.damping(0.0).tolist()) == [0.0] * 6 + [1.0] * (N - 6)
    for damped in (space.discriminate(task, 0.0), keep_inputs(task, gram, 0.0)):
        close(damped, wanted)
        assert np.abs(exact(damped.matrix()) @ x).max() < 1e-5
        close(space.discriminate(damped, 0.0), exact(damped.matrix()))  # idempotent
    ridge = InputSpace.of(gram)
    for epsilon, distance in ((1e-2, 1.0), (1e-4, 1e-2), (1e-10, 1e-5)):
        left = exact(ridge.apply(torch.from_numpy(t), epsilon))
        assert np.abs(left - wanted).max() < distance
    twice = ridge.apply(ridge.apply(torch.from_numpy(t), 0.1), 0.1)
    once = ridge.apply(torch.from_numpy(t), 0.1)
    assert (twice - once).abs().max() > 1e-3  # a ridge is no projection


def test_inputs_that_span_everything_leave_nothing_in_the_limit() -> None:
    task, gram = task_of(1), gram_of(np.random.default_rng(0).standard_normal((N, 50)))
    assert norm(task) > 1
    assert norm(keep_inputs(task, gram, 0.0)) == 0
    assert 0 < norm(keep_inputs(task, gram, 1e-8)) < 1e-6 * norm(task)


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-3])
def test_without_inputs_nothing_is_kept(epsilon: float) -> None:
    task, nothing = task_of(1), torch.zeros(N, N)
    assert response(task, nothing) == 0
    close(keep_inputs(task, nothing, epsilon), exact(task.matrix()))
    close(InputSpace.of(nothing).discriminate(task, epsilon), exact(task.matrix()))
    something = gram_of(inputs_of(1, 3))
    assert norm(keep_inputs(task, something, epsilon)) < norm(task) * 0.999


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-3, 0.1])
def test_with_keep_tasks_their_span_stays_untouched(epsilon: float) -> None:
    task, gram = task_of(1), gram_of(inputs_of(2, 200))
    keep = KeepSpace.of([task_of(7, k=3), task_of(8, k=2)])
    v = exact(keep.V)
    right = discriminate(task, keep, "right")
    inner = outside(gram, keep.V)
    assert (inner @ keep.V.double()).abs().max() < 1e-6 * gram.norm()
    damped = keep_inputs(right, inner, epsilon)
    size = norm(task)
    assert np.abs(exact(task.matrix()) @ v).max() > 0.1
    plain = keep_inputs(right, gram, 0.1)  # the ridge of C itself would turn it back in
    assert np.abs(exact(plain.matrix()) @ v).max() > 1e-3
    assert np.abs(exact(damped.matrix()) @ v).max() < 3e-7 * size
    p = np.eye(N) - v @ v.T
    x = p @ np.linalg.cholesky(exact(gram) + 1e-15 * np.eye(N))
    if epsilon > 1e-9:
        close(damped, exact(right.matrix()) @ multiplier(x, epsilon))


def test_outside_of_nothing_is_everything() -> None:
    gram = gram_of(inputs_of(2, 200))
    torch.testing.assert_close(outside(gram, torch.zeros(N, 0)), gram)
    assert outside(gram, orth(torch.eye(N))).abs().max() < 1e-15


def test_senseless_statistics_are_refused() -> None:
    task = task_of(1)
    good = gram_of(inputs_of(2, 200))
    assert norm(keep_inputs(task, good, 1e-3)) > 0
    for bad in (float("nan"), float("inf")):
        broken = good.clone()
        broken[3, 2] = bad
        for use in (lambda g: keep_inputs(task, g, 1e-3), InputSpace.of):
            with pytest.raises(NonFiniteError, match="NaN or infinity"):
                use(broken)
    with pytest.raises(EditError, match="negative eigenvalue"):
        InputSpace.of(good - torch.eye(N))
    with pytest.raises(EditError, match="negative eigenvalue"):
        keep_inputs(task, good - torch.eye(N), 1e-3)
    with pytest.raises(EditError, match="square"):
        InputSpace.of(good[:3])
    with pytest.raises(EditError, match=rf"width {N - 1} for a change of {N}"):
        keep_inputs(task, good[1:, 1:], 1e-3)
    with pytest.raises(EditError, match=f"width {N}"):
        InputSpace.of(good).apply(torch.ones(2, N - 1), 1e-3)
    for epsilon in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(EditError, match="epsilon"):
            keep_inputs(task, good, epsilon)
        with pytest.raises(EditError, match="epsilon"):
            InputSpace.of(good).damping(epsilon)


def test_rounding_of_a_singular_sum_is_no_negative_eigenvalue() -> None:
    """Float32 products of few inputs have eigenvalues a little under zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 40, generator=generator) @ torch.randn(40, 200, generator=generator)
    gram = x.T @ x
    assert torch.linalg.eigvalsh(gram.double())[0] < 0
    space = InputSpace.of(gram)
    assert space.values[0] == 0
    assert int(space.damping(0.0).sum()) == 160
    task = task_of(1, n=200)
    damped, other = keep_inputs(task, gram, 1e-3), space.discriminate(task, 1e-3)
    assert norm(damped) < 0.95 * norm(task)
    # The one clamps that rounding to zero, the other has it beside the ridge: so far they differ.
    rounding = float(torch.linalg.eigvalsh(gram.double())[:160].abs().max())
    ridge = 1e-3 * float(gram.double().diagonal().mean())
    apart = np.linalg.norm(exact(damped.matrix()) - exact(other.matrix()))
    assert apart <= rounding / (ridge - rounding) * norm(task)


def test_given_statistics_are_left_as_they_are() -> None:
    gram = gram_of(inputs_of(2, 200))
    before = gram.clone()
    keep_inputs(task_of(1), gram, 1e-3)
    keep_inputs(task_of(1), gram, 0.0)
    assert torch.equal(gram, before)


def test_memory_grows_with_the_square() -> None:
    assert work_bytes(20) == 4 * work_bytes(10) > 4 * 8 * 100
