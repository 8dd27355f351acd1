from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import same_bytes
from weightsurgery.algebra.rounding import (
    ChangeStats,
    compute_dtype,
    generator_for,
    round_to,
    stochastic_round,
)
from weightsurgery.errors import EditError

SMALL = [torch.bfloat16, torch.float16]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored numbers next below and next above, equal where a value is stored exactly."""
    near = values.to(dtype)
    infinity = torch.full_like(near, math.inf)
    wide = near.to(values.dtype)
    low = torch.where(wide > values, torch.nextafter(near, -infinity), near)
    high = torch.where(wide < values, torch.nextafter(near, infinity), near)
    return low.to(values.dtype), high.to(values.dtype)


def spread(dtype: torch.dtype, count: int = 20_000) -> torch.Tensor:
    """Values of every magnitude, normal and subnormal, of both signs."""
    info = torch.finfo(dtype)
    exponents = torch.empty(count).uniform_(
        math.log2(info.smallest_normal) - 6, math.log2(info.max) - 1, generator=generator(1)
    )
    signs = torch.randint(0, 2, (count,), generator=generator(2)) * 2 - 1
    return signs * torch.exp2(exponents)


@pytest.mark.parametrize("dtype", SMALL)
def test_result_is_one_of_the_two_neighbours(dtype: torch.dtype) -> None:
    values = spread(dtype)
    low, high = neighbours(values, dtype)
    rounded = stochastic_round(values, dtype, generator()).float()
    assert ((low < high).float().mean()) > 0.9  # nearly all lie between two
    assert ((rounded == low) | (rounded == high)).all()
    between = low < high
    share = float((rounded == low)[between].float().mean())
    assert 0.4 < share < 0.6  # both are taken


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("magnitude", [1.0, -1.0, 1e-3, "subnormal"])
def test_stochastic_rounding_is_unbiased_where_nearest_loses_all(
    dtype: torch.dtype, magnitude: float | str
) -> None:
    if magnitude == "subnormal":
        start = torch.finfo(dtype).smallest_normal / 4
    else:
        start = float(torch.tensor(magnitude, dtype=dtype))
    low, high = neighbours(torch.tensor([start * (1 + 1e-4)], dtype=torch.float64), dtype)
    gap = float(high - low)
    draws, fraction = 40_000, 0.2
    values = torch.full((draws,), float(low) + fraction * gap, dtype=torch.float64)
    nearest = values.to(dtype).double()
    assert (nearest == low).all()  # nearest loses the change in every element
    rounded = stochastic_round(values, dtype, generator(3)).double()
    error = float((rounded - values).mean()) / gap
    deviation = math.sqrt(fraction * (1 - fraction) / draws)
    assert abs(error) < 4 * deviation  # four standard deviations of the mean
    assert fraction > 10 * deviation  # so that nearest would fail this


@pytest.mark.parametrize("dtype", SMALL)
def test_values_that_are_stored_exactly_never_move(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(dtype)
    every = every[torch.isfinite(every)]
    assert every.numel() > 60_000
    for seed in range(3):
        assert same_bytes(stochastic_round(every.float(), dtype, generator(seed)), every)


@pytest.mark.parametrize("dtype", [*SMALL, torch.float32])
def test_beyond_the_largest_number_lies_infinity(dtype: torch.dtype) -> None:
    top = torch.finfo(dtype).max
    values = torch.tensor([top, -top, top * 1.5, -top * 1.5], dtype=torch.float64)
    rounded = stochastic_round(values, dtype, generator()).double()
    assert rounded.tolist() == [top, -top, math.inf, -math.inf]


def test_float64_rounds_to_float32_neighbours() -> None:
    values = torch.randn(5000, dtype=torch.float64, generator=generator())
    low, high = neighbours(values, torch.float32)
    rounded = stochastic_round(values, torch.float32, generator()).double()
    assert ((rounded == low) | (rounded == high)).all()
    assert (rounded != values.float().double()).any()


def test_rounding_to_nearest_needs_no_generator() -> None:
    values = torch.randn(1000)
    assert same_bytes(round_to(values, torch.bfloat16), values.bfloat16())
    assert not torch.equal(round_to(values, torch.bfloat16, generator()), values.bfloat16())
    assert same_bytes(round_to(values, torch.float32, generator()), values)
    with pytest.raises(EditError, match="float8"):
        round_to(values, torch.float8_e4m3fn, generator())


def test_generator_depends_on_seed_tensor_and_row() -> None:
    def draw(*key: int | str) -> float:
        return float(torch.rand(1, generator=generator_for(*key)))  # type: ignore[arg-type]

    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    keys += [(0, "a1", 0), (0, "a", 10), (1, "0a", 0), (10, "a", 0)]  # alike when run together
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(0, "a", 0) == draw(0, "a", 0)


@pytest.mark.parametrize(
    ("stored", "arithmetic"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
    ],
)
def test_arithmetic_is_float32_and_never_narrower(
    stored: torch.dtype, arithmetic: torch.dtype
) -> None:
    assert compute_dtype(stored) == arithmetic


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    change=st.sampled_from([0.0, 1e-4, 1e-2, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_statistics_are_numpys(sizes: list[int], change: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, parts, blocks = ChangeStats(), [ChangeStats(), ChangeStats()], []
    for number, size in enumerate(sizes):
        before = torch.from_numpy(rng.standard_normal(size)).bfloat16().float()
        meant = torch.from_numpy(change * rng.standard_normal(size)).float()
        after = (before + meant).bfloat16().float()
        total.add(before, meant, after)
        parts[number % 2].add(before, meant, after)
        blocks.append([x.double().numpy() for x in (before, meant, after)])
    w, d, after = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    written = after - w
    close = {"rel": 1e-12, "abs": 1e-12}
    assert total.relative == pytest.approx(np.linalg.norm(written) / np.linalg.norm(w), **close)
    if change:
        assert total.surviving == (written != 0)[d != 0].mean()
        assert total.agreement == pytest.approx(written @ d / (d @ d), **close)
        wanted = np.linalg.norm(written - d) / np.linalg.norm(d)
        assert total.lost == pytest.approx(wanted, **close)
    else:
        assert (total.surviving, total.agreement, total.lost) == (1, 1, 0)
    parts[0].merge(parts[1])
    assert parts[0].wanted == total.wanted
    assert parts[0].written == pytest.approx(total.written, **close)


def test_statistics_of_numbers_too_large_for_float32_sums() -> None:
    before = torch.full((64,), 1e30)
    stats = ChangeStats()
    stats.add(before, before, 2 * before)
    assert stats.relative == pytest.approx(1, rel=1e-6)
    assert stats.base == pytest.approx(64e60, rel=1e-6)
