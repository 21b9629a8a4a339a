"""Percentiles of histograms."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from api.console.data.histogram import RATIO, Percentiles, merged


def bin_of(milliseconds: float) -> int:
    return math.floor(math.log(max(1, milliseconds)) / math.log(RATIO))


def histogram(times: list[float]) -> dict[int, int]:
    return merged({bin_of(time): 1} for time in times)


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert Percentiles.of({}) is None


@given(st.lists(st.floats(1, 3_600_000), min_size=1, max_size=300))
def test_percentiles_are_close_to_those_of_the_times(times: list[float]) -> None:
    found = Percentiles.of(histogram(times))
    assert found is not None
    assert found.count == len(times)
    for share, value in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        exact = sorted(times)[max(1, math.ceil(share * len(times))) - 1]
        assert exact / RATIO - 0.1 <= value <= exact * RATIO + 0.1


@given(st.lists(st.lists(st.floats(1, 100_000), max_size=20), max_size=10))
def test_histograms_add_up(parts: list[list[float]]) -> None:
    whole = histogram([time for part in parts for time in part])
    assert merged(histogram(part) for part in parts) == whole
