"""Means over examples, their bootstrap intervals, and forgetting as a function of two means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Change",
    "Estimate",
    "Measurements",
    "Resampling",
    "drift",
    "estimate",
    "estimate_change",
    "estimate_combined",
    "forgetting",
    "normalised_forgetting",
]

Change = Callable[[float, float], "float | str"]
"""From the scores before and after to a number, or to the reason why there is none."""

_CHUNK = 1 << 20  # examples drawn at a time, which bounds the memory


@dataclass(frozen=True)
class Measurements:
    """One metric on every example of a set.

    Attributes:
        values: float64, shape (examples,); NaN where the metric is not defined.
        weights: float64, shape (examples,): what each counts for in the mean.
        why: Why it is not defined where it is not.
    """

    values: Tensor
    weights: Tensor
    why: str = ""

    @property
    def defined(self) -> Tensor:
        """Where the metric is defined, bool, shape (examples,)."""
        return ~self.values.isnan()

    def mean(self) -> float | None:
        """The weighted mean over the examples where it is defined; None if there is none."""
        if not bool(self.defined.any()):
            return None
        weights = self.weights * self.defined
        return float((self.values.nan_to_num(0.0) * weights).sum() / weights.sum())


@dataclass(frozen=True)
class Resampling:
    """A bootstrap over examples.

    Attributes:
        seed: The same for two models draws the same examples.
        times: Number of resamples, each of as many examples as there are, with replacement.
    """

    seed: int = 0
    times: int = 2000

    def means(self, measured: Measurements) -> Tensor:
        """The resamples' means, float64, shape (times,); NaN where nothing is defined."""
        weights = measured.weights * measured.defined
        products = measured.values.nan_to_num(0.0) * weights
        count = len(weights)
        generator = torch.Generator().manual_seed(self.seed)
        rows = max(1, _CHUNK // count)
        chunks = []
        for start in range(0, self.times, rows):
            shape = (min(rows, self.times - start), count)
            drawn = torch.randint(count, shape, generator=generator)
            chunks.append(products[drawn].sum(1) / weights[drawn].sum(1))
        return torch.cat(chunks)


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: None where it is not defined.
        interval: 95 % percentile bootstrap interval over examples; None for a single example, or
            where the number is not defined in every resample.
        examples: How many examples it rests on.
        why: Why there is no value, or why not all examples count.
    """

    value: float | None
    interval: tuple[float, float] | None
    examples: int
    why: str = ""


def estimate(
    measured: Measurements, resampling: Resampling, transform: Callable[[float], float] = float
) -> Estimate:
    """A set's mean with its percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Args:
        measured: One value per example.
        resampling: How the interval is found.
        transform: Applied to the mean, rising; as exp for a perplexity.
    """
    mean, count = measured.mean(), int(measured.defined.sum())
    if mean is None:
        return Estimate(None, None, 0, measured.why)
    value = _finite(transform, mean)
    if value is None:
        return Estimate(None, None, count, "too large for a float")
    interval = _interval(resampling.means(measured)) if count > 1 else None
    if interval is not None:
        low, high = (_finite(transform, each) for each in interval)
        interval = None if low is None or high is None else (low, high)
    return Estimate(value, interval, count, measured.why if count < len(measured.values) else "")


def estimate_change(
    before: Measurements,
    after: Measurements,
    change: Change,
    resampling: Resampling,
    transform: Callable[[float], float] = float,
) -> Estimate:
    """A change of a set's mean, with the interval of a paired bootstrap.

    Args:
        before: One value per example.
        after: The same examples' values of another model.
        change: From the two means to a number, or to the reason why there is none.
        resampling: How the interval is found: both models are measured on the same draws.
        transform: Applied to each mean first.
    """
    return estimate_combined((before, after), change, resampling, transform)


def estimate_combined(
    measured: Sequence[Measurements],
    combine: Callable[..., float | str],
    resampling: Resampling,
    transform: Callable[[float], float] = float,
) -> Estimate:
    """A function of several means over the same examples, with a paired bootstrap's interval.

    Args:
        measured: Each one value per example, of the same examples.
        combine: From the means, in their order, to a number, or to the reason why there is none.
        resampling: How the interval is found: all are measured on the same draws.
        transform: Applied to each mean first.
    """
    shared = torch.stack([each.defined for each in measured]).all(0)
    why = next((each.why for each in measured if each.why), "")
    restricted = [
        Measurements(each.values.where(shared, math.nan), each.weights, why) for each in measured
    ]
    count = int(shared.sum())
    means = [mean for each in restricted if (mean := each.mean()) is not None]
    if len(means) < len(restricted):
        return Estimate(None, None, 0, why)
    value = _combined(combine, transform, means)
    if isinstance(value, str):
        return Estimate(None, None, count, value)
    interval = None
    if count > 1:
        tuples = zip(*(resampling.means(each).tolist() for each in restricted), strict=True)
        drawn = [_combined(combine, transform, each) for each in tuples]
        figures = [each for each in drawn if not isinstance(each, str)]
        if len(figures) == len(drawn):
            interval = _interval(torch.tensor(figures, dtype=torch.float64))
    why = why if count < len(shared) else ""
    if count > 1 and interval is None:
        why = "; ".join(filter(None, [why, "no interval: not defined in all resamples"]))
    return Estimate(value, interval, count, why)


def forgetting(s0: float, s1: float) -> float | str:
    """Raw forgetting in percent, `100 (s0 - s1) / s0`; the reason where s0 is 0."""
    return 100 * (s0 - s1) / s0 if s0 > 0 else "the score before is 0: nothing to forget"


def normalised_forgetting(s0: float, s1: float, chance: float) -> float | str:
    """Forgetting in percent of what exceeds chance, `100 (s0 - s1) / (s0 - chance)`.

    100 where the score has fallen to chance; the reason where it was no better before.
    """
    if s0 <= chance:
        return f"the score before ({s0:.3g}) is no better than chance ({chance:.3g})"
    return 100 * (s0 - s1) / (s0 - chance)


def drift(s0: float, s1: float) -> float | str:
    """Relative change either way, `|s1 - s0| / s0`; the reason where s0 is 0."""
    return abs(s1 - s0) / s0 if s0 > 0 else "the score before is 0: no relative change"


def _combined(
    combine: Callable[..., float | str], transform: Callable[[float], float], means: Sequence[float]
) -> float | str:
    values = [value for each in means if (value := _finite(transform, each)) is not None]
    if len(values) < len(means):
        return "too large for a float, or not defined"
    return combine(*values)


def _finite(transform: Callable[[float], float], value: float) -> float | None:
    try:
        result = transform(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def _interval(means: Tensor) -> tuple[float, float] | None:
    if not bool(means.isfinite().all()):
        return None
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(means, bounds).tolist()
    return low, high
