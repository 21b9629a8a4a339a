"""Intervals of rates and means. Pure functions of numbers; they import NumPy when they are first used.

A rate has Wilson's score interval, which stays within 0 and 1 and is usable for few observations and for rates near 0
and 1, where the normal approximation is not. A mean has the percentile interval of a bootstrap. The mean of scores that
are yes or no is a rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The quantile of the standard normal distribution that has 2.5 % above it.
Z_95 = 1.959963984540054
# The resamples of a bootstrap: the ends of an interval vary by about a hundredth of its width.
RESAMPLES = 2000
# The scale of scores that are yes (1) or no (0), as rubrics name it.
YES_NO = "yes/no"


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `n` observations. Without observations, there is neither a rate nor an interval."""

    count: int
    n: int

    @property
    def rate(self) -> float | None:
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> Interval | None:
        return wilson(self.count, self.n) if self.n else None


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of `n` observations. A bootstrap of a single observation has no interval."""

    mean: float
    n: int
    interval: Interval | None


def wilson(count: int, n: int, z: float = Z_95) -> Interval:
    """Wilson's score interval, without continuity correction, of a rate of `count` in `n` observations.

    Raises:
        ValueError: there are no observations, or `count` is not from 0 to `n`.
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"{count} of {n} observations")
    centre = count + z * z / 2
    spread = z * math.sqrt(count * (n - count) / n + z * z / 4)
    total = n + z * z
    # The ends at 0 and 1 are exact, which the arithmetic is not.
    low = 0.0 if count == 0 else max(0.0, (centre - spread) / total)
    high = 1.0 if count == n else min(1.0, (centre + spread) / total)
    return Interval(low, high)


def mean_of_scores(counts: Mapping[float, int], *, yes_no: bool) -> Mean | None:
    """The mean of scores, given as how often each was given, with its interval: Wilson's if they are yes (1) or no (0),
    else that of a bootstrap. None without scores."""
    n = sum(counts.values())
    if not n:
        return None
    if not yes_no:
        return bootstrap_mean(counts)
    yes = counts.get(1.0, 0)
    return Mean(yes / n, n, wilson(yes, n))


def bootstrap_mean(counts: Mapping[float, int], seed: int = 0) -> Mean:
    """The mean of observations, given as how often each value was observed, with its bootstrap interval.

    The time and memory that it takes depend on the number of different values, not on that of observations. The same
    counts and seed give the same interval.

    Raises:
        ValueError: there are no observations.
    """
    import numpy as np

    values: Any = np.array(sorted(counts), dtype=float)
    weights: Any = np.array([counts[value] for value in sorted(counts)], dtype=np.int64)
    n = int(weights.sum()) if len(counts) else 0
    if n < 1:
        raise ValueError("there are no observations")
    mean = float(values @ weights) / n
    if n == 1:
        return Mean(mean, n, None)
    # How often each value is in a resample of n observations.
    drawn = np.random.default_rng(seed).multinomial(n, weights / n, size=RESAMPLES)
    means = drawn @ values / n
    low, high = np.quantile(means, (0.025, 0.975))
    # The mean itself is never outside of the interval, however the last digits are rounded.
    return Mean(mean, n, Interval(min(float(low), mean), max(float(high), mean)))
