"""Truncated SVDs of large matrices against float64, on spectra that are hard to iterate on."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch

from tests.conftest import low_rank
from weightsurgery.algebra import krylov, svd
from weightsurgery.algebra.lowrank import Energy, Rank, RankRule
from weightsurgery.algebra.svd import energy, truncated_svd

K = 20
# Over half a million elements: the tolerance holds, not float32 accuracy.
SHAPES = [(1100, 640), (640, 1100), (768, 768)]
SHORT = 640
i = np.arange(1.0, SHORT + 1)

SPECTRA = {
    "power -1/4": i**-0.25,
    "power -1/2": i**-0.5,
    "power -1": i**-1.0,
    "power -2": i**-2.0,
    "geometric": 10.0 ** (-i / 8),
    "flat but for spikes": np.r_[np.linspace(10, 5, 12), np.full(SHORT - 12, 1.0)],
    "clustered at the cut": np.r_[np.full(15, 2.0), np.linspace(1.001, 0.999, 10), i[25:] * 0.001],
    "more equal than asked for": np.r_[np.ones(50), np.full(SHORT - 50, 0.01)],
    "nearly equal": np.r_[1 - 1e-5 * np.linspace(0, 1, 50), np.full(SHORT - 50, 0.01)],
    "all equal": np.ones(SHORT),
    "rank under the one asked for": np.r_[np.linspace(2, 1, 7), np.zeros(SHORT - 7)],
    "rank over the one asked for": np.r_[np.linspace(2, 1, 40), np.zeros(SHORT - 40)],
    "one and noise near zero": np.r_[1.0, np.full(SHORT - 1, 1e-6)],
    "one, structure, noise": np.r_[1, np.linspace(0.01, 0.003, 40), np.full(SHORT - 41, 3e-4)],
    "noise": None,
    "noise, rows of any size": None,
}


@lru_cache(maxsize=1)
def matrix(kind: str, shape: tuple[int, int]) -> tuple[torch.Tensor, np.ndarray]:
    """A float32 matrix and all of its singular values in float64."""
    rng = np.random.default_rng(len(kind))
    values = SPECTRA[kind]
    if values is not None:
        wide = low_rank(*shape, values, seed=3)
    else:
        wide = rng.standard_normal(shape)
        if "rows" in kind:
            wide *= np.geomspace(1e-12, 1e12, shape[0])[rng.permutation(shape[0]), None]
    matrix = torch.from_numpy(wide).float()
    return matrix, np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def true_residual(a: torch.Tensor, factors: svd.LowRank) -> float:
    u, s, v = (part.double() for part in (factors.U, factors.S, factors.V))
    wide = a.double()
    right, left = (wide @ v - u * s).norm(dim=0), (wide.T @ u - v * s).norm(dim=0)
    return float(torch.maximum(right, left).max() / s[0])


def off_orthonormal(columns: torch.Tensor) -> float:
    gram = columns.double().T @ columns.double()
    return float((gram - torch.eye(gram.shape[0], dtype=gram.dtype)).abs().max())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", SPECTRA)
def test_holds_the_best_energy_of_its_rank_to_a_thousandth(
    kind: str, shape: tuple[int, int], scale: float
) -> None:
    a, s = matrix(kind, shape)
    if "rows" in kind and scale != 1:
        pytest.skip("leaves float32")
    factor = np.float32(scale).item()
    a = a * factor
    before = a.clone()
    truncation = truncated_svd(a, Rank(K))
    u, v = truncation.factors.U, truncation.factors.V
    assert torch.equal(a, before)
    assert truncation.residual > 0  # iterated, not exact

    best = float((s[:K] ** 2).sum())
    held = truncation.factors.energy / factor**2
    assert best * (1 - 1e-3) <= held <= best * (1 + 1e-5)
    # What the values claim, the subspaces hold.
    projected = float((u.double().T @ a.double()).square().sum()) / factor**2
    assert best * (1 - 1e-3) <= projected <= best * (1 + 1e-5)
    assert max(off_orthonormal(u), off_orthonormal(v)) < 2e-6
    assert truncation.total == pytest.approx(float((s**2).sum()) * factor**2, rel=1e-6)
    # The residual is that of these factors; 2e-6 is what float32 adds and takes.
    true = true_residual(a, truncation.factors)
    assert true == pytest.approx(truncation.residual, rel=0.02, abs=2e-6)
    values = truncation.factors.S.double().numpy()
    worst = np.abs(values[:, None] / factor - s).min(1).max() / s[0]
    assert worst <= math.sqrt(2) * truncation.residual + 2e-6


@pytest.mark.parametrize("kind", ["noise", "power -1/4", "power -1/2"])
def test_without_iterating_a_tenth_of_the_energy_is_missed(kind: str) -> None:
    """Before: these spectra are hard."""
    a, s = matrix(kind, SHAPES[0])
    steps = krylov._Steps(a, 32, seed=0)
    assert steps.extend()
    held = float(steps.ritz(K).values.sum())
    assert held < 0.9 * float((s[:K] ** 2).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_small_factor_is_found_beside_a_large_one(shape: tuple[int, int]) -> None:
    """Their energy, a five-hundredth of it all, lies under the tolerance given here."""
    a, s = matrix("one, structure, noise", shape)
    truncation = truncated_svd(a, Rank(K), tolerance=0.1)
    held = float(truncation.factors.S[1:].double().square().sum())
    best = float((s[1:K] ** 2).sum())
    assert best < 0.01 * float((s**2).sum())
    assert held >= 0.8 * best


def passes(monkeypatch: pytest.MonkeyPatch, a: torch.Tensor, rule: RankRule, **more: float) -> int:
    """Columns multiplied by the matrix and its transpose."""
    counted, inner = [], krylov._Steps._multiplied

    def counting(self: krylov._Steps, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counted.append(len(block))
        return inner(self, block)

    with monkeypatch.context() as patched:
        patched.setattr(krylov._Steps, "_multiplied", counting)
        truncated_svd(a, rule, **more)
    return sum(counted)


def test_iterates_as_long_as_the_matrix_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    spiked, _ = matrix("flat but for spikes", SHAPES[0])
    exact, _ = matrix("rank under the one asked for", SHAPES[0])
    noise, _ = matrix("noise", SHAPES[0])
    columns = [passes(monkeypatch, a, Rank(K)) for a in (exact, spiked, noise)]
    assert columns == sorted(columns)
    assert columns[0] == 32  # one block
    assert columns[2] > 2 * columns[1]
    assert passes(monkeypatch, noise, Rank(K), tolerance=0.05) < columns[2]


def test_a_basis_as_wide_as_the_matrix_gives_way_to_its_gram_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise, s = matrix("noise", SHAPES[2])
    assert passes(monkeypatch, noise, Rank(400)) == 0
    truncation = truncated_svd(noise, Rank(400))
    np.testing.assert_allclose(truncation.factors.S.numpy(), s[:400], rtol=0, atol=2e-6 * s[0])
    assert true_residual(noise, truncation.factors) == pytest.approx(
        truncation.residual, rel=0.05, abs=1e-6
    )


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_energy_is_found_without_trying_every_rank(
    monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    tried, inner = [], svd.leading

    def counting(matrix: torch.Tensor, k: int, *rest: float, **more: float) -> object:
        tried.append(k)
        return inner(matrix, k, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(svd, "leading", counting)
    a, s = matrix("power -1/2", SHAPES[0])
    truncation = truncated_svd(a, Energy(fraction))
    held = np.cumsum(s**2) / (s**2).sum()
    # The fewest, or one more: iterated factors hold a little less than the best ones.
    fewest = int(np.argmax(held >= fraction)) + 1
    assert fewest <= truncation.factors.rank <= fewest + 1
    assert truncation.kept >= fraction - 1e-6
    true = true_residual(a, truncation.factors)
    assert true == pytest.approx(truncation.residual, rel=0.02, abs=2e-6)
    assert len(tried) <= 4
    assert tried == sorted(set(tried))


@pytest.mark.parametrize("fraction", [0.9, 1.0])
def test_all_the_energy_of_a_low_rank_is_its_rank(fraction: float) -> None:
    a, s = matrix("rank under the one asked for", SHAPES[0])
    truncation = truncated_svd(a, Energy(fraction))
    held = np.cumsum(s**2) / (s**2).sum()
    assert truncation.factors.rank == int(np.argmax(held >= fraction * (1 - 1e-6))) + 1 <= 7
    assert truncation.kept == pytest.approx(held[truncation.factors.rank - 1], rel=1e-6)


def test_factors_beyond_the_energy_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    a, s = matrix("flat but for spikes", SHAPES[0])
    spikes = float((s[:12] ** 2).sum() / (s**2).sum())
    few = passes(monkeypatch, a, Energy(0.99 * spikes))
    assert few < passes(monkeypatch, a, Energy(1.05 * spikes))
    assert few <= 96


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_view_is_the_transpose(shape: tuple[int, int]) -> None:
    a, _ = matrix("power -1", shape)
    straight, turned = truncated_svd(a, Rank(K)), truncated_svd(a.T, Rank(K))
    assert turned.factors.shape == (shape[1], shape[0])
    torch.testing.assert_close(turned.factors.S, straight.factors.S, rtol=0, atol=1e-3)
    assert true_residual(a.T, turned.factors) == pytest.approx(turned.residual, rel=0.02, abs=2e-6)
    assert not a.T.is_contiguous()


@pytest.mark.parametrize("scale", [1e-44, 1e-25, 1e-16, 1.0, 1e16, 1e25, 3e37])
def test_energy_is_float64s(scale: float) -> None:
    a = torch.randn(300, 130) * scale
    a[5:9] = 0
    wanted = float(a.double().square().sum())
    assert wanted > 0
    assert energy(a) == pytest.approx(wanted, rel=1e-6)
    assert energy(a.T) == pytest.approx(wanted, rel=1e-6)
    assert energy(torch.zeros(40, 3)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_energy_is_not_finite_where_an_element_is_not(bad: float, scale: float) -> None:
    a = torch.randn(700, 900) * scale
    assert math.isfinite(energy(a))
    a[699, 899] = bad
    assert not math.isfinite(energy(a))


def test_energy_that_is_known_is_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = matrix("power -1", SHAPES[0])
    known = energy(a)
    wanted = truncated_svd(a, Rank(K))
    monkeypatch.setattr(svd, "energy", None)
    truncation = truncated_svd(a, Rank(K), total=known)
    assert truncation.total == wanted.total
    assert torch.equal(truncation.factors.U, wanted.factors.U)


@pytest.mark.parametrize("kind", ["all equal", "noise", "power -1/4", "more equal than asked for"])
@pytest.mark.parametrize("rule", [Rank(K), Rank(500)], ids=["iterated", "gram"])
def test_effective_rank_is_that_of_the_whole_matrix(kind: str, rule: RankRule) -> None:
    a, s = matrix(kind, SHAPES[2])
    wanted = float((s**2).sum() ** 2 / (s**4).sum())
    assert wanted > 2 * K  # more than the factors alone would tell
    effective_rank = truncated_svd(a, rule).effective_rank
    # A sketch of 32 columns has a standard error of about 6 %.
    assert effective_rank == pytest.approx(wanted, rel=0.2 if rule == Rank(K) else 1e-6)


def test_effective_rank_of_small_matrices_is_exact() -> None:
    a = torch.randn(70, 50)
    s = np.linalg.svd(a.double().numpy(), compute_uv=False)
    wanted = float((s**2).sum() ** 2 / (s**4).sum())
    assert truncated_svd(a, Rank(2)).effective_rank == pytest.approx(wanted, rel=1e-9)
    assert truncated_svd(torch.zeros(70, 50), Rank(2)).effective_rank == 0
    assert truncated_svd(torch.zeros(700, 500), Rank(2)).effective_rank == 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["noise", "power -1", "rank under the one asked for"])
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu_nothing_but_numbers_comes_back(kind: str, shape: tuple[int, int]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Returned(TorchDispatchMode):
        """The largest tensor that any operation brings to the CPU from the device."""

        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            given = [each for each in args if isinstance(each, torch.Tensor)]
            from_device = any(each.device.type == "cuda" for each in given)
            if isinstance(out, torch.Tensor) and out.device.type == "cpu" and from_device:
                self.largest = max(self.largest, out.numel())
            return out

    a, s = matrix(kind, shape)
    there = a.cuda()
    with Returned() as seen:
        there.cpu()
    assert seen.largest == a.numel()  # before: the watch sees what it is to see
    with Returned() as seen:
        truncation = truncated_svd(there, Rank(K))
    assert seen.largest <= 1
    assert truncation.factors.U.device.type == truncation.factors.V.device.type == "cuda"
    best = float((s[:K] ** 2).sum())
    assert best * (1 - 1e-3) <= truncation.factors.energy <= best * (1 + 1e-5)
    assert true_residual(a, truncation.factors.to("cpu")) == pytest.approx(
        truncation.residual, rel=0.02, abs=2e-6
    )
