"""Intervals of rates and means, compared with SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.quality.intervals import Interval, Mean, Rate, bootstrap_mean, mean_of_scores, wilson

COUNTS = st.integers(1, 10_000_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
SCORES = st.dictionaries(st.integers(1, 5).map(float), st.integers(1, 500), min_size=1)


@settings(max_examples=200, deadline=None)
@given(COUNTS)
def test_wilsons_interval_is_scipys(counts: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    found, expected = wilson(*counts), binomtest(*counts).proportion_ci(method="wilson")
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)


@given(COUNTS)
def test_the_interval_has_the_rate_and_stays_within_0_and_1(counts: tuple[int, int]) -> None:
    count, n = counts
    found = wilson(count, n)
    assert 0 <= found.low <= count / n <= found.high <= 1
    mirrored = wilson(n - count, n)
    assert mirrored.low == pytest.approx(1 - found.high, abs=1e-9)


@pytest.mark.parametrize(("count", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_errors(count: int, n: int) -> None:
    with pytest.raises(ValueError, match="observations"):
        wilson(count, n)


def test_without_observations_there_is_no_rate() -> None:
    assert (Rate(0, 0).rate, Rate(0, 0).interval) == (None, None)
    assert Rate(0, 3).interval == wilson(0, 3)
    assert wilson(0, 3).low == 0
    assert wilson(0, 3).high == pytest.approx(0.5615, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(SCORES, st.integers(0, 3))
def test_the_interval_of_a_mean_has_the_mean(scores: dict[float, int], seed: int) -> None:
    found = bootstrap_mean(scores, seed)
    values = np.repeat(list(scores), list(scores.values()))
    assert found.n == len(values)
    assert found.mean == pytest.approx(values.mean())
    assert found == bootstrap_mean(dict(reversed(scores.items())), seed), "the same each time, in any order"
    if found.n == 1:
        assert found.interval is None
        return
    assert found.interval is not None
    assert values.min() <= found.interval.low <= found.mean <= found.interval.high <= values.max()


def test_the_bootstrap_of_counts_is_that_of_the_observations() -> None:
    from scipy.stats import bootstrap

    scores = {1.0: 12, 2.0: 20, 3.0: 41, 4.0: 60, 5.0: 33}
    values = np.repeat(list(scores), list(scores.values()))
    expected = bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    found = bootstrap_mean(scores).interval
    assert found is not None
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=width / 10)
    assert found.high == pytest.approx(expected.high, abs=width / 10)


def test_equal_scores_have_an_interval_without_width() -> None:
    assert bootstrap_mean({4.0: 7}) == Mean(4.0, 7, Interval(4.0, 4.0))


def test_the_mean_of_yes_and_no_is_a_rate() -> None:
    assert mean_of_scores({1.0: 3, 0.0: 1}, yes_no=True) == Mean(0.75, 4, wilson(3, 4))
    assert mean_of_scores({0.0: 2}, yes_no=True) == Mean(0.0, 2, wilson(0, 2))
    assert mean_of_scores({1.0: 3, 0.0: 1}, yes_no=False) == bootstrap_mean({1.0: 3, 0.0: 1})
    assert mean_of_scores({}, yes_no=True) is mean_of_scores({}, yes_no=False) is None


def test_no_scores_are_an_error() -> None:
    for scores in ({}, {3.0: 0}):
        with pytest.raises(ValueError, match="no observations"):
            bootstrap_mean(scores)


def test_a_95_percent_interval_has_the_true_rate_in_95_percent() -> None:
    """The exact probability, for 40 observations of a rate of 0.1."""
    n, rate = 40, 0.1
    covered = sum(
        math.comb(n, count) * rate**count * (1 - rate) ** (n - count)
        for count in range(n + 1)
        if wilson(count, n).low <= rate <= wilson(count, n).high
    )
    assert covered == pytest.approx(0.95, abs=0.03)
