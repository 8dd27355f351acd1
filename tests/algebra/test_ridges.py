"""One decomposition for many ridges: the same as solving for each."""

import pytest
import torch

from weightsurgery.algebra.activations import keep_inputs, outside
from weightsurgery.algebra.lowrank import LowRank, orth
from weightsurgery.algebra.ridges import Ridges
from weightsurgery.errors import EditError, NonFiniteError

N = 48


def task(rank: int = 6, rows: int = 20, spare: torch.Tensor | None = None) -> LowRank:
    """Random factors; with T V = 0 where a span is to be spared."""
    v = torch.randn(N, rank)
    if spare is not None:
        v = v - spare @ (spare.T @ v)
    return LowRank(orth(torch.randn(rows, rank)), torch.rand(rank).sort().values.flip(0), orth(v))


def inputs(count: int, spread: float = 1.0) -> torch.Tensor:
    """``C`` of inputs whose directions differ in strength."""
    x = torch.randn(count, N, dtype=torch.float64) * torch.logspace(0, -spread, N)
    return x.T @ x


def close(actual: LowRank, wanted: LowRank) -> bool:
    size = float(wanted.matrix().norm())
    return float((actual.matrix() - wanted.matrix()).norm()) <= 2e-6 * size


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("count", [10, 200])
def test_as_solving_for_one_ridge(epsilon, count):
    gram, change = inputs(count), task()
    assert not close(change, keep_inputs(change, gram, epsilon))  # the ridge does something
    assert close(Ridges(gram).apply(change, epsilon), keep_inputs(change, gram, epsilon))


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("count", [10, 200])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_as_solving_for_the_inputs_outside_a_span(epsilon, count, spread):
    gram = inputs(count, spread)
    spare = orth(torch.randn(N, 7))
    change = task(spare=spare)
    wanted = keep_inputs(change, outside(gram, spare), epsilon)
    damped = Ridges(gram).apply(change, epsilon, spare)
    if count < N - 7 or epsilon > 0:
        assert wanted.energy > 0
    size = float(change.matrix().norm())
    assert float((damped.matrix() - wanted.matrix()).norm()) <= 2e-6 * size
    assert float((damped.matrix() @ spare).norm()) <= 1e-5 * size
    plain = Ridges(gram).apply(change, epsilon)
    if epsilon in (1e-3, 1.0):  # before: the ridge of all inputs does not leave the span alone
        assert float((plain.matrix() @ spare).norm()) > 1e-3 * float(plain.matrix().norm())


def test_one_decomposition_serves_all(monkeypatch):
    counted = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: counted.append(x.shape) or eigh(x))
    ridges = Ridges(inputs(200))
    for _ in range(3):
        spare = orth(torch.randn(N, 7))
        change = task(spare=spare)
        for epsilon in (1e-3, 1e-2, 1e-1):
            ridges.apply(change, epsilon, spare)
            ridges.apply(change, epsilon)
    assert counted == [(N, N)]
    for epsilon in (0.0, 1e-13):  # beyond what solving can do: once per span
        ridges.apply(change, epsilon, spare)
    assert counted == [(N, N)] * 2


def test_inputs_within_the_span_leave_the_rest_alone():
    spare = orth(torch.randn(N, 7))
    inside = spare.double() @ torch.randn(7, 30, dtype=torch.float64)
    change = task(spare=spare)
    gram = inside @ inside.T
    assert close(Ridges(gram).apply(change, 1e-3, spare), change)


def test_nothing_to_keep_leaves_all():
    change = task()
    assert close(Ridges(torch.zeros(N, N, dtype=torch.float64)).apply(change, 1e-3), change)


def test_what_is_no_sum_of_inputs_is_refused():
    with pytest.raises(EditError, match="negative eigenvalue"):
        Ridges(-inputs(20))
    with pytest.raises(NonFiniteError):
        Ridges(inputs(20) * float("nan"))
    with pytest.raises(EditError, match="epsilon"):
        Ridges(inputs(20)).apply(task(), -1.0)
