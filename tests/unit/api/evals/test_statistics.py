"""Kappa, and comparisons of models."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.evals.statistics import (
    FEW,
    MOST_ACCELERATED,
    RESAMPLES,
    Conclusion,
    Pairwise,
    agreement,
    cohens_kappa,
    difference_by_counts,
    paired_difference,
    unpaired_difference,
)
from api.quality.intervals import Interval

SCALE = [1, 2, 3, 4, 5]
PAIRS = st.lists(st.tuples(st.sampled_from(SCALE), st.sampled_from(SCALE)), min_size=1, max_size=60)


def test_kappa_of_two_points_by_hand() -> None:
    # Both yes 20, both no 15, and 5 and 10 of the mixed ones: the example of Cohen's kappa that textbooks have.
    # Observed 35/50 = 0.7; expected (25 * 30 + 25 * 20) / 50^2 = 0.5; kappa 0.2 / 0.5 = 0.4.
    table = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    assert cohens_kappa(table, [0, 1]) == pytest.approx(0.4)
    found = agreement([[pair] for pair, count in table.items() for _ in range(count)], [0, 1])
    assert found.n == 50
    assert found.observed == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.interval is not None
    assert 0.1 < found.interval.low < 0.4 < found.interval.high < 0.7


def test_weighted_kappa_by_hand() -> None:
    # Scale 1 to 3, weights (distance / 2)^2: 0, 1/4, 1. Pairs: (1,1), (2,2), (3,3), (1,2), (1,3).
    # Observed disagreement: (1/4 + 1) / 5 = 1/4. The first rater gave 1 three times, 2 and 3 once; the second gave 1
    # once, 2 and 3 twice. Expected: (3*2 + 1*1 + 1*2 + 1*2) / 4 of neighbours and 3*2 + 1*1 of others, by 25: 0.39.
    table = {(1, 1): 1, (2, 2): 1, (3, 3): 1, (1, 2): 1, (1, 3): 1}
    assert cohens_kappa(table, [1, 2, 3]) == pytest.approx(1 - 0.25 / 0.39)


def test_kappa_that_is_not_defined() -> None:
    assert cohens_kappa({}, SCALE) is None
    assert cohens_kappa({(4, 4): 10}, SCALE) is None, "chance alone would agree"
    found = agreement([[(4, 4)]] * 10, SCALE)
    assert (found.n, found.observed, found.kappa, found.interval) == (10, 1, None, None)
    assert agreement([], SCALE).observed is None


def test_labels_of_many_people_do_not_narrow_the_interval() -> None:
    """Each answer that eight people have labelled in the same way says no more than one label of it."""
    table = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    once, many = agreement([[pair] for pair in pairs], [0, 1]), agreement([[pair] * 8 for pair in pairs], [0, 1])
    assert (many.n, many.observed) == (50, once.observed)
    assert many.kappa == pytest.approx(once.kappa)
    assert many.interval is not None
    assert once.interval is not None
    assert many.interval.low == pytest.approx(once.interval.low)
    assert many.interval.high == pytest.approx(once.interval.high)
    independent = agreement([[pair] for pair in pairs * 8], [0, 1])
    assert independent.n == 400
    assert independent.interval is not None
    assert independent.interval.low > many.interval.low + 0.1


@given(PAIRS)
def test_kappa_is_symmetric_bounded_and_one_for_equal_scores(pairs: list[tuple[int, int]]) -> None:
    kappa = cohens_kappa(Counter(pairs), SCALE)
    assert kappa == cohens_kappa(Counter((second, first) for first, second in pairs), SCALE)
    if kappa is not None:
        assert -1 - 1e-9 <= kappa <= 1 + 1e-9
    same = cohens_kappa(Counter((first, first) for first, _ in pairs), SCALE)
    assert same is None or same == pytest.approx(1)


@given(PAIRS)
def test_kappa_does_not_depend_on_where_the_scale_begins(pairs: list[tuple[int, int]]) -> None:
    shifted = Counter((first + 7, second + 7) for first, second in pairs)
    assert cohens_kappa(shifted, [score + 7 for score in SCALE]) == cohens_kappa(Counter(pairs), SCALE)


def test_a_worse_model_is_found_and_chance_is_not() -> None:
    worse = paired_difference([-1.0, -0.5, 0.0, -1.0, 0.5] * 20)
    assert worse.conclusion is Conclusion.WORSE
    assert worse.mean == pytest.approx(-0.4)
    assert worse.p is not None
    assert worse.p < 0.001
    better = paired_difference([1.0, 0.5, 0.0, 1.0, -0.5] * 20)
    assert better.conclusion is Conclusion.BETTER
    even = paired_difference([1.0, -1.0] * 50)
    assert even.conclusion is Conclusion.NO_DIFFERENCE
    assert even.p is not None
    assert even.p > 0.5


def test_differences_of_few_or_equal_values() -> None:
    assert paired_difference([]).conclusion is Conclusion.TOO_FEW
    assert paired_difference([0.5]).interval is None
    few = paired_difference([-1.0] * (FEW - 1))
    assert few.conclusion is Conclusion.TOO_FEW
    same = paired_difference([0.0] * 50)
    assert (same.mean, same.conclusion) == (0, Conclusion.NO_DIFFERENCE)
    assert same.p == pytest.approx(1)
    lost = paired_difference([-1.0] * 50)
    assert lost.conclusion is Conclusion.WORSE


@pytest.mark.parametrize("values", [[-1.0, -0.5, 0.0, 0.5, 1.0] * 40 + [-0.5] * 30, [1.0, -1.0, 0.0] * 70])
def test_differences_by_value_are_those_of_the_items(values: list[float]) -> None:
    found, expected = difference_by_counts(Counter(values)), paired_difference(values)
    assert found.interval is not None
    assert expected.interval is not None
    assert found.p is not None
    width = expected.interval.high - expected.interval.low
    assert found.n == expected.n
    assert found.mean == pytest.approx(expected.mean)
    assert found.interval.low == pytest.approx(expected.interval.low, abs=width / 10)
    assert found.interval.high == pytest.approx(expected.interval.high, abs=width / 10)
    assert found.p == pytest.approx(expected.p, abs=0.02)


def test_a_comparison_of_very_many_items() -> None:
    """With arrays of all items, each resample would take as much memory as these: gigabytes, or minutes."""
    found = paired_difference([1.0, -1.0, -1.0, 0.0] * 25_000)
    assert (found.n, found.mean, found.conclusion) == (100_000, -0.25, Conclusion.WORSE)
    assert found.p == pytest.approx(1 / (RESAMPLES + 1))
    same = paired_difference([0.5] * (MOST_ACCELERATED + 1))
    assert same.interval == Interval(0.5, 0.5)
    assert paired_difference([0.0] * (MOST_ACCELERATED + 1)).p == 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=2, max_size=40))
def test_intervals_contain_the_mean_and_are_those_of_the_other_direction(values: list[float]) -> None:
    found, reverse = paired_difference(values), paired_difference([-value for value in values])
    assert found.mean == pytest.approx(np.mean(values))
    assert reverse.mean == pytest.approx(-float(np.mean(values)))
    assert found.interval is not None
    assert found.interval.low <= found.mean <= found.interval.high  # type: ignore[operator]
    assert min(values) <= found.interval.low
    assert found.interval.high <= max(values)
    assert found.p is not None
    assert 0 < found.p <= 1
    assert found == paired_difference(values), "the same values give the same interval"


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        found = paired_difference([float(value) for value in rng.choice([-1, 0, 0, 1, 1], size=60)])
        assert found.interval is not None
        covered += found.interval.low <= 0.2 <= found.interval.high
    assert covered >= 51, "about 57 of 60"


def test_scores_of_different_items() -> None:
    worse = unpaired_difference({4.0: 30, 5.0: 50}, {2.0: 20, 3.0: 20, 4.0: 20})
    assert worse.conclusion is Conclusion.WORSE
    assert worse.n == 60
    assert worse.mean == pytest.approx(3 - (4 * 30 + 5 * 50) / 80)
    assert worse.p is not None
    assert worse.p < 0.001
    assert unpaired_difference({4.0: 30}, {}).conclusion is Conclusion.TOO_FEW
    assert unpaired_difference({4.0: 30}, {4.0: 30}).p == 1
    same = unpaired_difference({3.0: 20, 4.0: 20}, {3.0: 21, 4.0: 20})
    assert same.conclusion is Conclusion.NO_DIFFERENCE


def test_scores_that_do_not_vary_are_not_certain() -> None:
    """Three equal scores each: two of the twenty divisions of the six scores have this difference."""
    found = unpaired_difference({5.0: 3}, {1.0: 3})
    assert found.p == pytest.approx(2 / 20)
    assert found.conclusion is Conclusion.TOO_FEW
    assert unpaired_difference({5.0: 2}, {1.0: 4}).p == pytest.approx(1 / 15)
    many = unpaired_difference({5.0: 100_000}, {1.0: 100_000}).p
    assert many is not None
    assert 0 <= many < 1e-300


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_differences_are_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        paired_difference([0.5, value, *[0.0] * 30])


def test_raters_with_one_score_each_agree_as_chance_would() -> None:
    assert cohens_kappa({(5, 1): 10}, SCALE) == 0
    found = agreement([[(5, 1)]] * 10, SCALE)
    assert (found.observed, found.kappa) == (0, 0)


def test_pairs_are_counted_in_both_orders() -> None:
    # By item: the score of the first model when it was shown first, and when it was shown second.
    found = Pairwise.of(
        {
            "always a": (1, 1),
            "always b": (0, 0),
            "the one shown first": (1, 0),
            "neither": (0.5, 0.5),
            "a, then tie": (1, 0.5),
        }
    )
    assert found.swapped == 2, "the one shown first, and the last"
    assert (found.wins, found.ties) == ((2, 1), 2)
    assert found.difference.n == 5
    assert found.difference.mean == pytest.approx((-1 + 1 + 0 + 0 - 0.5) / 5)


def test_a_judge_that_prefers_the_first_answer_shows_no_difference() -> None:
    found = Pairwise.of(dict.fromkeys(range(40), (1.0, 0.0)))
    assert (found.swapped, found.ties) == (40, 40)
    assert found.difference.conclusion is Conclusion.NO_DIFFERENCE
