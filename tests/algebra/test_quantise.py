from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from tests.conftest import exact, same_bytes
from weightsurgery.algebra.quantise import int_rtn, nf4_codebook, nf4_rtn
from weightsurgery.errors import EditError, NonFiniteError

# Appendix E of arXiv 2305.14314.
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip

sizes = st.tuples(st.integers(1, 6), st.integers(1, 150))
groups = st.sampled_from([1, 3, 32, 64, 200])
magnitudes = st.sampled_from([1e-30, 0.02, 1.0, 1e20])
seeds = st.integers(0, 2**16)


def normal(shape: tuple[int, ...], magnitude: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = magnitude * torch.randn(shape, generator=generator)
    weight[0] += 3 * magnitude  # a row far from zero: the two integer grids differ
    return weight


def in_groups(weight: torch.Tensor, size: int) -> list[np.ndarray]:
    """Each row cut every `size` columns."""
    return [
        row[start : start + size]
        for row in exact(weight)
        for start in range(0, row.size, size)
    ]  # fmt: skip


def float32_slack(group: np.ndarray) -> float:
    return float(np.abs(group).max()) * 2.0**-24


@given(sizes, groups, st.integers(2, 8), st.booleans(), magnitudes, seeds)
def test_integers_are_near_few_and_final(
    shape: tuple[int, int], group: int, bits: int, symmetric: bool, magnitude: float, seed: int
) -> None:
    weight = normal(shape, magnitude, seed)
    before = weight.clone()
    once = int_rtn(weight, bits, group, symmetric)
    assert same_bytes(weight, before)
    assert once.dtype == torch.float32
    assert same_bytes(int_rtn(once, bits, group, symmetric), once)
    for old, new in zip(in_groups(weight, group), in_groups(once, group), strict=True):
        assert len(np.unique(new)) <= 2**bits
        if symmetric:
            step = np.abs(old).max() / (2 ** (bits - 1) - 1)
        else:
            step = (old.max() - old.min()) / (2**bits - 1)
            assert {old.min(), old.max()} <= set(new)
        assert np.abs(new - old).max() <= step / 2 * (1 + 1e-12) + float32_slack(old)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 5, 64]), magnitudes, seeds)
def test_nf4_is_near_few_and_final(
    rows: int, columns: int, block: int, magnitude: float, seed: int
) -> None:
    weight = normal((rows, columns), magnitude, seed)
    once = nf4_rtn(weight, block)
    assert once.shape == weight.shape
    assert same_bytes(nf4_rtn(once, block), once)
    for old, new in zip(
        in_groups(weight.reshape(1, -1), block), in_groups(once.reshape(1, -1), block), strict=True
    ):
        levels = np.asarray(nf4_codebook()) * np.abs(old).max()
        nearest = np.abs(old[:, None] - levels).min(axis=1)
        assert (np.abs(new - old) <= nearest + float32_slack(old)).all()
        assert np.abs(new[:, None] - levels).min(axis=1).max() <= float32_slack(old)
        assert len(np.unique(new)) <= 16


def test_the_codebook_is_the_published_one() -> None:
    codebook = nf4_codebook()
    assert codebook == tuple(sorted(codebook))
    np.testing.assert_allclose(codebook, PUBLISHED_NF4, rtol=0, atol=3e-7)
    # The quantiles again, by another library.
    ends = 1 - (1 / 32 + 1 / 30) / 2
    up, down = norm.ppf(np.linspace(0.5, ends, 9)), norm.ppf(np.linspace(1 - ends, 0.5, 8))
    np.testing.assert_allclose(codebook, np.union1d(down, up) / up[-1], rtol=0, atol=1e-12)


def test_integers_are_numpys() -> None:
    weight = normal((8, 64), 0.02, 5)
    rows = exact(weight)
    scale = np.abs(rows).max(axis=1, keepdims=True) / 7
    assert np.abs(rows - np.round(rows / scale) * scale).max() > 1e-4  # something is rounded
    np.testing.assert_allclose(exact(int_rtn(weight)), np.round(rows / scale) * scale, rtol=1e-7)


def test_more_bits_and_smaller_groups_are_nearer() -> None:
    weight = normal((16, 256), 0.02, 6)

    def error(rounded: torch.Tensor) -> float:
        return float((rounded - weight).norm() / weight.norm())

    errors = [error(int_rtn(weight, bits)) for bits in (2, 4, 8)]
    assert errors[0] > 3 * errors[1] > 30 * errors[2] > 0
    assert error(int_rtn(weight, 4, 256)) > error(int_rtn(weight, 4, 16)) > 0
    # Normal weights are what NF4 was made for; a row with an offset is what min and max are for.
    offset, centred = weight[:1], weight[1:]
    assert 0 < (nf4_rtn(centred) - centred).norm() < (int_rtn(centred) - centred).norm()
    assert (int_rtn(offset, symmetric=False) - offset).norm() < (int_rtn(offset) - offset).norm()


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_and_constant_groups_stay(symmetric: bool) -> None:
    weight = normal((2, 70), 1.0, 7)
    weight[0, :64] = 0
    weight[1, 64:] = 0.3
    rounded = int_rtn(weight, 4, 64, symmetric)
    assert torch.equal(rounded[0, :64], weight[0, :64])
    assert torch.equal(rounded[1, 64:], weight[1, 64:])
    assert not torch.equal(rounded[1, :64], weight[1, :64])
    blocks = weight.clone().reshape(-1)
    blocks[:64], blocks[64:128] = 0, -0.3
    rounded_blocks = nf4_rtn(blocks)
    assert torch.equal(rounded_blocks[:128], blocks[:128])
    assert not torch.equal(rounded_blocks[128:], blocks[128:])


def test_other_dtypes_are_rounded_from_their_values() -> None:
    weight = normal((4, 96), 1.0, 8).bfloat16()
    for rounding in (int_rtn, nf4_rtn):
        assert same_bytes(rounding(weight), rounding(weight.float()))
    assert int_rtn(torch.zeros(0, 5)).shape == (0, 5)
    assert int_rtn(torch.zeros(5, 0)).shape == (5, 0)


def test_what_cannot_be_rounded_is_refused() -> None:
    weight = torch.ones(2, 4)
    with pytest.raises(EditError, match="9 bits"):
        int_rtn(weight, 9)
    with pytest.raises(EditError, match=r"shape \(4,\)"):
        int_rtn(weight[0])
    with pytest.raises(EditError, match="group of 0"):
        int_rtn(weight, 4, 0)
    with pytest.raises(EditError, match="block of -1"):
        nf4_rtn(weight, -1)
    for bad in (float("nan"), float("inf")):
        weight[1, 1] = bad
        for rounding in (int_rtn, nf4_rtn):
            with pytest.raises(NonFiniteError, match="NaN or infinity"):
                rounding(weight)
