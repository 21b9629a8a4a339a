"""Comparisons in which some items have no score."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.evals.judgements import Outcome
from api.evals.outcomes import (
    Compared,
    Gap,
    Sensitivity,
    compare_pairs,
    compare_references,
    compare_samples,
    compare_scores,
)
from api.evals.rubrics import Scale
from api.evals.statistics import Conclusion, Difference
from shared.domain.judgements import JudgementState

SCALE = Scale.parse("1-5")
SCORED, UNPARSABLE, FAILED, UNANSWERED, PENDING = (
    JudgementState.SCORED,
    JudgementState.UNPARSABLE,
    JudgementState.FAILED,
    JudgementState.UNANSWERED,
    JudgementState.PENDING,
)
Judged = tuple[JudgementState, float | None]


def pair(item: object, first: Judged, second: Judged) -> list[Outcome]:
    """The judgements of an item in both orders."""
    return [Outcome(str(item), "a", position, *one) for position, one in ((1, first), (2, second))]


def single(item: object, first: Judged, second: Judged) -> list[Outcome]:
    """The judgements of the answers of `a` and `b` to an item."""
    return [Outcome(str(item), model, 0, *one) for model, one in (("a", first), ("b", second))]


def means(found: Compared) -> list[tuple[int, float | None] | None]:
    """`n` and the mean of a comparison: of the items with scores, with failures, and at most against `b` and `a`."""
    sensitivity = found.sensitivity
    assert sensitivity is not None
    shown = (found.difference, sensitivity.counted, sensitivity.against_b, sensitivity.against_a)
    return [None if one is None else (one.n, one.mean) for one in shown]


def test_without_gaps_there_is_one_comparison() -> None:
    found = compare_pairs(pair(1, (SCORED, 1), (SCORED, 0.5)), turned=False)
    assert (found.difference, found.sensitivity, found.unscored) == (Difference(1, -0.5), None, 0)
    assert found.shown is found.difference
    assert Sensitivity.of([1.0], []) is None


def test_pairs_without_an_answer_or_a_score() -> None:
    outcomes = [
        *pair("a wins", (SCORED, 1), (SCORED, 1)),
        *pair("tie", (SCORED, 0.5), (SCORED, 0.5)),
        *pair("b has failed", (UNANSWERED, 1), (UNANSWERED, 1)),
        *pair("a has failed", (UNANSWERED, 0), (UNANSWERED, 0)),
        *pair("b has failed too", (UNANSWERED, 1), (UNANSWERED, 1)),
        *pair("both have failed", (UNANSWERED, 0.5), (UNANSWERED, 0.5)),
        *pair("unparsable", (SCORED, 1), (UNPARSABLE, None)),
        *pair("failed", (FAILED, None), (FAILED, None)),
        *pair("pending", (SCORED, 1), (PENDING, None)),
        Outcome("one order", "a", 1, SCORED, 1),
    ]
    found = compare_pairs(outcomes, turned=False)
    assert (found.unanswered, found.unscored) == ((2, 3), 2)
    assert means(found) == [(2, -0.5), (6, -2 / 6), (8, -4 / 8), (8, 0.0)]
    assert found.pairwise is not None
    assert (found.pairwise.wins, found.pairwise.ties) == ((1, 0), 1), "of the items that were judged"
    turned = compare_pairs(outcomes, turned=True)
    assert turned.unanswered == (3, 2)
    assert means(turned) == [(2, 0.5), (6, 2 / 6), (8, 0.0), (8, 4 / 8)]


def test_scores_without_an_answer_or_a_judgement() -> None:
    outcomes = [
        *single(1, (SCORED, 4), (SCORED, 3)),
        *single(2, (SCORED, 4), (UNANSWERED, None)),
        *single(3, (UNANSWERED, None), (UNANSWERED, None)),
        *single(4, (SCORED, 2), (UNPARSABLE, None)),
        *single(5, (FAILED, None), (UNANSWERED, None)),
        *single(6, (SCORED, 4), (PENDING, None)),
        Outcome("7", "a", 0, SCORED, 1),
    ]
    found = compare_scores(outcomes, "a", "b", SCALE)
    assert (found.unanswered, found.unscored) == ((1, 3), 1)
    # Items 2 and 3 differ by -3 and 0. Item 4 may differ by -1 to 3, and item 5 by -4 to 0.
    assert means(found) == [(1, -1), (3, -4 / 3), (5, -9 / 5), (5, -1 / 5)]
    unknown = compare_scores(outcomes, "a", "b", None)
    assert (unknown.sensitivity, unknown.unscored, unknown.difference.n) == (None, 1, 1)


def test_references_without_an_answer() -> None:
    found = compare_references({"1": 0.5, "2": 0.75}, {"1": 1.0, "3": 0.25}, ["1", "2", "3", "4"])
    assert found.unanswered == (2, 2)
    assert means(found) == [(1, 0.5), (4, (0.5 - 0.75 + 0.25 + 0) / 4), None, None]


def test_sampled_answers_whose_judges_failed() -> None:
    found = compare_samples({4.0: 50}, {4.0: 25, 5.0: 15}, (0, 40), SCALE)
    assert found.difference.conclusion is Conclusion.BETTER
    assert found.shown.mean == pytest.approx(0.375)
    assert found.unscored == 40
    sensitivity = found.sensitivity
    assert sensitivity is not None
    assert sensitivity.against_b is not None
    assert sensitivity.against_a is not None
    assert sensitivity.against_b.conclusion is Conclusion.WORSE, "if these answers were bad, it would be"
    assert sensitivity.against_a.conclusion is Conclusion.BETTER
    assert compare_samples({4.0: 50}, {4.0: 40}, (0, 0), SCALE).sensitivity is None


STATES = st.sampled_from([(SCORED, 1.0), (SCORED, 3.0), (SCORED, 5.0), (UNPARSABLE, None), (UNANSWERED, None)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(STATES, STATES), min_size=1, max_size=12))
def test_bounds_contain_the_comparison_and_are_those_of_the_other_direction(
    judged: list[tuple[Judged, Judged]],
) -> None:
    outcomes = [one for item, pair_ in enumerate(judged) for one in single(item, *pair_)]
    found, reverse = compare_scores(outcomes, "a", "b", SCALE), compare_scores(outcomes, "b", "a", SCALE)
    assert reverse.unanswered == found.unanswered[::-1]
    if found.sensitivity is None:
        assert all(state is SCORED for one in judged for state, _ in one)
        return
    assert reverse.sensitivity is not None
    low, high = found.sensitivity.against_b, found.sensitivity.against_a
    if low is None or high is None:
        assert found.unscored == 0
        return
    assert low.n == high.n == len(judged)
    assert low.mean is not None
    assert high.mean is not None
    assert low.mean < high.mean
    other = reverse.sensitivity.against_a
    assert other is not None
    assert other.mean == pytest.approx(-low.mean)


def test_a_gap_of_a_failed_answer_is_known() -> None:
    found = Sensitivity.of([0.0] * 30, [Gap(-1.0, -1.0)] * 30)
    assert found is not None
    assert (found.counted.n, found.counted.mean, found.against_b) == (60, -0.5, None)
    assert found.counted.conclusion is Conclusion.WORSE
