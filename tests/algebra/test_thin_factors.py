"""QR of thin factors: by Gram matrices where they are as good, by reflections elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsurgery.algebra import discriminate as discrimination
from weightsurgery.algebra import lowrank
from weightsurgery.algebra.discriminate import KeepSpace, discriminate
from weightsurgery.algebra.lowrank import LowRank, orth, recompress


def cancelling() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two adapters that are nearly the same, one less the other; held in float64."""
    rng = np.random.default_rng(4)
    left, right = rng.standard_normal((60, 3)), rng.standard_normal((40, 3))
    moved = left + 1e-6 * rng.standard_normal(left.shape)
    parts = np.concatenate([left, -moved], 1), np.eye(6), np.concatenate([right, right], 1)
    return tuple(torch.from_numpy(part) for part in parts)  # type: ignore[return-value]


def test_what_nearly_cancels_keeps_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    left, middle, right = cancelling()
    product = (left @ middle @ right.T).numpy()
    s = np.linalg.svd(product, compute_uv=False)
    assert np.linalg.norm(product) < 1e-5 * float(left.norm()) * float(right.norm())
    factors = recompress(left, middle, right)
    assert factors.rank == 3
    np.testing.assert_allclose(factors.S.numpy(), s[:3], rtol=1e-8)
    # Before: Gram matrices of such factors, without the look at their eigenvalues.
    monkeypatch.setattr(lowrank, "_WELL_APART", 0.0)
    right = right + 1e-7 * torch.randn(right.shape, dtype=right.dtype)
    s = np.linalg.svd((left @ right.T).numpy(), compute_uv=False)
    rough = recompress(left, middle, right)
    assert float(abs(rough.S[0].numpy() - s[0]) / s[0]) > 1e-7
    monkeypatch.undo()
    assert float(abs(recompress(left, middle, right).S[0].numpy() - s[0]) / s[0]) < 1e-8


@pytest.mark.parametrize("p", [1, 5, 12, 30])
def test_both_ways_to_factor_columns_agree(monkeypatch: pytest.MonkeyPatch, p: int) -> None:
    rng = torch.Generator().manual_seed(p)
    left, right = (torch.randn(size, p, generator=rng, dtype=torch.float64) for size in (25, 40))
    middle = torch.randn(p, p, generator=rng, dtype=torch.float64)
    fast = recompress(left, middle, right)
    monkeypatch.setattr(lowrank, "_WELL_APART", 2.0)  # never
    slow = recompress(left, middle, right)
    assert fast.rank == slow.rank == min(p, 25)
    torch.testing.assert_close(fast.matrix(), slow.matrix(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 2e-5])
def test_columns_that_nearly_coincide_span_two_directions(gap: float) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second, third = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    columns = torch.stack([first, first + gap * second, third], 1)
    assert float(torch.linalg.cond(columns)) > 0.1 / gap
    basis = orth(columns)
    assert basis.shape == (50, 3)
    eye = torch.eye(3, dtype=basis.dtype)
    torch.testing.assert_close(basis.T @ basis, eye, rtol=0, atol=1e-13)
    wanted = torch.linalg.qr(torch.stack([first, second, third], 1)).Q
    assert float((wanted - basis @ (basis.T @ wanted)).abs().max()) < 1e-15 / gap**2 + 1e-13


def task(seed: int) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(size, 3, generator=rng)).Q for size in (60, 40))
    return LowRank(u, torch.tensor([3.0, 2.0, 1.0]), v)


@pytest.mark.parametrize(("side", "bases"), [("right", 1), ("left", 1), ("both", 2), ("shared", 2)])
def test_only_the_bases_that_a_side_needs_are_found(
    monkeypatch: pytest.MonkeyPatch, side: str, bases: int
) -> None:
    counted = []

    def counting(columns: torch.Tensor) -> torch.Tensor:
        counted.append(columns.shape)
        return orth(columns)

    monkeypatch.setattr(discrimination, "orth", counting)
    two, one = KeepSpace.of([task(1), task(2)]), KeepSpace.of([task(1)])
    for forget in (task(3), task(4)):
        discriminate(forget, two, side)
        assert len(counted) == bases  # once, for any number of tasks to forget
    discriminate(task(3), one, side)
    assert len(counted) == bases  # one task's factors are a basis already
