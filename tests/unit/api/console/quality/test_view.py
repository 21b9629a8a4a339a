"""What the pages of quality show."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from api.console.quality.view import (
    GroupLine,
    ReportView,
    ToLabelView,
    comparison_view,
    group_line,
    report_view,
    score_buttons,
)
from api.console.templates import render
from api.evals.outcomes import Compared, Sensitivity
from api.evals.reports import ModelReport, RubricReport
from api.evals.rubrics import Rubric, Sampling, Scale
from api.evals.service import Comparison, RubricState, ToLabel
from api.evals.statistics import Agreement, Difference, Pairwise
from api.quality.intervals import Interval, Mean
from api.quality.routes import GroupBy
from api.quality.service import QualityItem, Scores
from api.quality.store import FeedbackCounts, RequestCounts, ScoredRubric
from shared.domain.request import Message

RUBRIC = Rubric(name="helpful", question="Does it help?", judge="large", sampling=Sampling(rate=0.02))
YES_NO = RUBRIC.model_copy(update={"scale": Scale.parse("yes/no")})
MODELS = [
    ModelReport("small", Mean(4.0, 20, Interval(3.5, 4.5)), {4.0: 20}, 1, 2, 3),
    ModelReport("<b>new", None, {}, 5, 0, 0),
]
ITEM = QualityItem(
    None,
    ["small"],
    RequestCounts(100, 4, 50, 1, 2),
    FeedbackCounts(10, 9, 0),
    [
        Scores(ScoredRubric("helpful", "1", "large", "1-5", "a"), Mean(3.9, 41, Interval(3.6, 4.2)), 1, 0),
        Scores(ScoredRubric("polite", "2", "large", "", "b"), None, 2, 1),
    ],
)


def report(rubric: Rubric = RUBRIC, *, is_operator: bool = True) -> ReportView:
    known = Agreement(40, 0.7, 0.71, Interval(0.5, 0.85))
    found = RubricReport(rubric, datetime.now(UTC), MODELS, known, {"ann": Agreement(3, 1.0)}, Agreement(0), None)
    return report_view(found, RubricState(rubric, None), is_operator=is_operator)


def compared(difference: Difference, pairwise: Pairwise | None = None) -> Comparison:
    return Comparison("a", "b", "helpful", "large", None, Compared(difference, pairwise), 1, 2, 3)


def page(**values: object) -> str:
    viewer = SimpleNamespace(csrf_token="t", key_name="k", project_name="p", is_operator=True)
    shown = {
        "status": 200, "root": "./", "here": "./quality", "viewer": viewer, "groups": (), "searched": (),
        "current": None,
    }  # fmt: skip
    return str(render("quality/quality.html", {**shown, **values}))


@pytest.mark.parametrize("rubric", [RUBRIC, YES_NO])
def test_a_report_has_intervals_and_places(rubric: Rubric) -> None:
    view = report(rubric)
    first, second = view.models
    assert (second.mean, second.range, second.pending) == ("–", None, 5)
    if rubric is RUBRIC:
        assert (first.mean, first.interval) == ("4.00", "3.50 to 4.50")
        assert first.range is not None
        assert (first.range.low, first.range.mean, first.range.high) == (62.5, 75, 87.5)
    lines = view.agreement
    assert [(line.who, line.words) for line in lines] == [
        ("judge and people", "substantial"),
        ("judge and ann", "all scores are the same"),
    ]


def test_the_conclusion_of_a_comparison() -> None:
    worse = comparison_view(compared(Difference(40, -0.5, Interval(-0.7, -0.3), 0.001)))
    assert worse.verdict == "b is worse than a."
    assert worse.range is not None
    assert worse.range.low < worse.range.mean < worse.range.high < 50
    assert ("95 % interval", "-0.700 to -0.300") in worse.facts
    assert ("Not scored", "1 unparsable, 2 failed, 3 pending") in worse.facts
    pairs = Pairwise.of({1: (1.0, 0.0), 2: (1.0, 1.0), 3: (0.0, 0.0)})
    few = comparison_view(compared(pairs.difference, pairs))
    assert few.badge.text == "too few"
    assert [(name, count) for name, count, _ in few.shares] == [("a", 1), ("neither", 1), ("b", 1)]
    assert ("The orders disagree on", "1 of 3 items") in few.facts
    assert comparison_view(compared(Difference(0))).range is None


def test_failed_answers_count_and_are_shown_apart() -> None:
    equal, worse = Difference(40, 0.0, Interval(-0.1, 0.1), 1.0), Difference(60, -0.5, Interval(-0.7, -0.3), 0.001)
    sensitivity = Sensitivity(worse, Difference(65, -0.6, Interval(-0.8, -0.4)), Difference(65, -0.4))
    found = Compared(equal, None, sensitivity, (0, 20), 5)
    view = comparison_view(Comparison("a", "b", "helpful", "large", "evalrun_1", found, 5, 0, 0))
    assert view.verdict == "b is worse than a."
    assert view.range is not None
    assert view.range.high < 50, "the picture is that of the verdict"
    assert ("Difference", "+0.000") in view.facts
    assert ("b has not answered", "20 items") in view.facts
    assert ("With failed answers as the worst", "-0.500 (-0.700 to -0.300), n = 60") in view.facts
    assert ("If the 5 without a score spoke against b", "-0.600 (-0.800 to -0.400), n = 65") in view.facts
    assert ("If the 5 without a score spoke against a", "-0.400, n = 65") in view.facts
    assert not any(name == "a has not answered" for name, _ in view.facts)


def test_labellers_are_shown_by_the_names_of_their_keys() -> None:
    agreement = Agreement(3, 0.5, 0.2)
    people = dict.fromkeys(("key_1", "key_2", "key_3", "key_4"), agreement)
    names = {"key_1": "ann", "key_2": "bob", "key_3": "bob"}
    found = RubricReport(RUBRIC, datetime.now(UTC), [], agreement, people, Agreement(0), None, names)
    lines = report_view(found, RubricState(RUBRIC, None), is_operator=True).agreement
    assert [line.who for line in lines[1:]] == [
        "judge and ann",
        "judge and bob (key_2)",
        "judge and bob (key_3)",
        "judge and key_4",
    ]


def test_rates_of_a_group() -> None:
    line = group_line(ITEM)
    assert (line.name, line.up.text, line.up.n) == ("small", "90.0%", 10)
    assert (line.refusals.n, line.by_classifier, line.errors.text) == (50, 2, "4.0%")
    assert line.scores == [
        "helpful (version 1, judge large): 3.90 (3.60 to 4.20), n = 41",
        "polite (version 2, judge large): no scores, 2 unparsable, 1 failed",
    ]
    nothing = group_line(QualityItem(None, [None]))
    assert (nothing.name, nothing.up.range, nothing.scores) == ("conversations", None, [])


def test_buttons_of_scales() -> None:
    assert [(one.value, one.key) for one in score_buttons(YES_NO)] == [("no", "n"), ("yes", "y")]
    wide = score_buttons(RUBRIC.model_copy(update={"scale": Scale(0, 10)}))
    assert [one.key for one in wide] == [*map(str, range(10)), ""]


def test_an_answer_to_label_is_cut() -> None:
    view = ToLabelView.of(ToLabel(RUBRIC, "job_1", [Message(role="user", content="x" * 30_000)], "Paris."))
    assert (view.conversation[0].label, view.conversation[0].is_cut, view.answer.is_cut) == ("user", True, False)


@pytest.mark.parametrize("is_full", [True, False])
def test_the_page_is_rendered(is_full: bool) -> None:
    pairs = Pairwise.of({1: (1.0, 0.0), 2: (1.0, 1.0), 3: (0.0, 0.0)})
    lines: list[GroupLine] = [group_line(ITEM)] if is_full else []
    text = page(
        names=["helpful"] if is_full else [],
        rubric="helpful" if is_full else "",
        days=30,
        choices=(7, 30),
        by=GroupBy.MODEL,
        groupings=list(GroupBy),
        lines=lines,
        is_cut=is_full,
        a="a",
        b="b",
        report=report() if is_full else None,
        comparison=comparison_view(compared(pairs.difference, pairs)) if is_full else None,
        problem=None if is_full else "No run has compared `a` with `b`.",
    )
    assert ("&lt;b&gt;new" in text) is is_full
    assert ("No rubrics" in text) is not is_full
    assert "<b>new" not in text
