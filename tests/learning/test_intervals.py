"""Means, bootstrap intervals and forgetting, against scipy and by hand."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from weightsurgery.learning.intervals import (
    Measurements,
    Resampling,
    drift,
    estimate,
    estimate_change,
    estimate_combined,
    forgetting,
    normalised_forgetting,
)

DRAWN = Resampling(0, 4000)


def measured(values, weights=None, why=""):
    ones = [1.0] * len(values)
    return Measurements(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(weights or ones, dtype=torch.float64),
        why,
    )


def test_means_leave_out_what_is_not_defined():
    each = measured([1.0, math.nan, 4.0], [1.0, 5.0, 2.0], why="too short")
    assert each.mean() == pytest.approx(3)
    found = estimate(each, DRAWN)
    assert (found.value, found.examples, found.why) == (pytest.approx(3), 2, "too short")
    nothing = estimate(measured([math.nan], why="too short"), DRAWN)
    assert (nothing.value, nothing.interval, nothing.why) == (None, None, "too short")
    assert estimate(measured([1.0, 2.0], why="too short"), DRAWN).why == ""


def test_intervals_agree_with_scipy():
    values = np.random.default_rng(1).standard_normal(60) + 2
    weights = np.random.default_rng(2).integers(1, 9, 60).astype(float)
    found = estimate(measured(values.tolist(), weights.tolist()), DRAWN, math.exp)

    def mean(v, w, axis=-1):
        return np.exp((v * w).sum(axis) / w.sum(axis))

    other = scipy.stats.bootstrap(
        (values, weights), mean, paired=True, vectorized=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    width = other.high - other.low
    assert found.value == pytest.approx(float(mean(values, weights)))
    assert found.interval == pytest.approx(tuple(other), abs=0.06 * width)


def test_changes_are_paired():
    rng = np.random.default_rng(0)
    before = rng.uniform(1, 9, 80)
    after = 0.75 * before  # the same loss on every example, however they differ
    found = estimate_change(measured(before), measured(after), forgetting, DRAWN)
    assert found.value == pytest.approx(25)
    assert found.interval == pytest.approx((25, 25))
    shuffled = estimate_change(measured(before), measured(after[::-1].copy()), forgetting, DRAWN)
    assert shuffled.value == pytest.approx(25)
    assert shuffled.interval[1] - shuffled.interval[0] > 10


def test_four_means_are_drawn_together():
    """A change beyond another's: where both move as one, there is nothing, and no doubt of it."""
    rng = np.random.default_rng(0)
    before, after, other = (rng.integers(0, 2, 80).astype(float) for _ in range(3))

    def beyond(b, a, b_, a_):
        return (a - b) - (a_ - b_)

    four = [measured(each.tolist()) for each in (before, after, other, other + (after - before))]
    found = estimate_combined(four, beyond, DRAWN)
    assert found.value == pytest.approx(0)
    assert found.interval == pytest.approx((0, 0))
    assert estimate_combined(four[:2], lambda b, a: a - b, DRAWN).interval[0] < -0.05
    four[3] = measured(other.tolist())
    found = estimate_combined(four, beyond, DRAWN)
    alone = estimate_combined(four[:2], lambda b, a: a - b, DRAWN)
    assert (found.value, found.interval) == (
        pytest.approx(alone.value),
        pytest.approx(alone.interval),
    )
    four[2] = measured([math.nan, *other[1:]], why="too short")
    found = estimate_combined(four, beyond, DRAWN)
    assert (found.examples, found.why) == (79, "too short")
    assert found.value == pytest.approx((after - before)[1:].mean())


def test_the_seed_decides():
    each = measured(np.random.default_rng(0).uniform(size=30).tolist())
    assert estimate(each, Resampling(1, 99)) == estimate(each, Resampling(1, 99))
    assert estimate(each, Resampling(1, 99)) != estimate(each, Resampling(2, 99))


def test_one_example_has_no_interval():
    assert estimate(measured([0.5]), DRAWN).interval is None
    assert estimate(measured([0.5, 0.5]), DRAWN).interval == (0.5, 0.5)


def test_large_sets_are_drawn_in_pieces():
    few = Resampling(0, 3).means(measured([1.0] * 1_200_000))
    assert few.tolist() == [1, 1, 1]


def test_forgetting_by_hand():
    assert forgetting(0.8, 0.2) == pytest.approx(75)
    assert normalised_forgetting(0.8, 0.2, 0.2) == pytest.approx(100)
    assert normalised_forgetting(0.8, 0.5, 0.2) == pytest.approx(50)
    assert drift(0.8, 1.0) == pytest.approx(0.25)
    assert drift(0.8, 0.6) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (forgetting, "before is 0"),
        (drift, "before is 0"),
        (lambda s0, s1: normalised_forgetting(s0, s1, 0.0), "no better than chance"),
    ],
)
def test_where_nothing_was_known_there_is_a_reason(change, reason):
    found = estimate_change(measured([0.0, 0.0]), measured([0.0, 1.0]), change, DRAWN)
    assert (found.value, found.interval) == (None, None)
    assert reason in found.why
    # A score that some resamples lack has a value and no interval.
    some = estimate_change(measured([0.0, 1.0]), measured([0.0, 0.0]), change, DRAWN)
    assert some.value == pytest.approx(1 if change is drift else 100)
    assert some.interval is None
    assert "resamples" in some.why


def test_what_no_float_holds_is_said():
    found = estimate(measured([1e4, 1e4]), DRAWN, math.exp)
    assert (found.value, found.why) == (None, "too large for a float")
    change = estimate_change(measured([0.0, 0.0]), measured([1e4, 1e4]), drift, DRAWN, math.exp)
    assert change.value is None
    assert "too large" in change.why
