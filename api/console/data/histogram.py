"""Histograms of times with bins of equal ratio, which can be added up and still give percentiles.

Percentiles themselves cannot be combined: the p99 of an hour does not follow from those of its minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Double, Integer, case, cast, func

# Each bin ends at 1.05 times its start, so that a percentile is off by 2.5 % at most. The first one starts at 1 ms.
RATIO = 1.05
K = TypeVar("K")
_LN_RATIO = math.log(RATIO)


def bin_of(interval: Any) -> Any:
    """The SQL expression of the bin of an interval; NULL if that is NULL."""
    # In floating point: logarithms of `numeric` take 20 times as long.
    milliseconds = cast(func.extract("epoch", interval), Double) * 1000
    # GREATEST ignores NULL.
    logarithm = case((milliseconds > 1, func.ln(milliseconds)), (milliseconds.is_not(None), 0.0))
    return cast(func.floor(logarithm / _LN_RATIO), Integer)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of `count` times, in milliseconds."""

    count: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, bins: Mapping[int, int]) -> Self | None:
        """The percentiles of a histogram: numbers of times by bin. None if it is empty."""
        count = sum(bins.values())
        if not count:
            return None
        return cls(count, *(_percentile(bins, count, share) for share in (0.5, 0.95, 0.99)))


def merged(histograms: Iterable[Mapping[K, int]]) -> dict[K, int]:
    """The sum of histograms, or of other counts."""
    total: dict[K, int] = {}
    for bins in histograms:
        for number, count in bins.items():
            total[number] = total.get(number, 0) + count
    return total


def _percentile(bins: Mapping[int, int], count: int, share: float) -> float:
    """The nearest-rank percentile. Within a bin, times are taken to be spread evenly on the logarithmic scale."""
    rank = max(1, math.ceil(share * count))
    before = 0
    for number in sorted(bins):
        if before + bins[number] >= rank:
            within = (rank - before - 0.5) / bins[number]
            return round(math.exp((number + within) * _LN_RATIO), 1)
        before += bins[number]
    raise AssertionError("the rank is within the count")
