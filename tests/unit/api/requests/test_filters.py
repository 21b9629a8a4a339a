"""Cursors, and conditions as clients write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.times import LAST
from api.requests.filters import Cursor, FeedbackFilter, submitted_at
from api.requests.query import RequestQuery, _feedback, _score
from shared.domain.errors import InvalidRequest
from shared.domain.job import new_job_id

ID = "job_" + "0" * 32


@given(st.datetimes(datetime(1970, 1, 2), datetime(2900, 1, 1), timezones=st.just(UTC)))
def test_a_cursor_is_read_as_it_was_written(moment: datetime) -> None:
    cursor = Cursor(moment, ID)
    assert Cursor.read(str(cursor)) == cursor


@pytest.mark.parametrize("text", ["", ID, "@1", f"{ID}@", f"{ID}@-1", f"{ID}@1.5", "job_1@1", f"{ID}@1 ", f"{ID}@٣"])
def test_a_malformed_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="after: must be the `last_id`"):
        Cursor.read(text)


def test_a_cursor_far_in_the_future_is_within_the_limits() -> None:
    assert Cursor.read(f"{ID}@{10**18 - 1}").ended_at <= LAST


def test_an_id_says_when_its_job_was_submitted() -> None:
    assert abs(submitted_at(new_job_id()) - datetime.now(UTC)) < timedelta(seconds=5)
    assert submitted_at("job_" + "f" * 32) <= LAST


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("rating", FeedbackFilter("rating")),
        ("rating=up", FeedbackFilter("rating", ("up",))),
        ("rating=true", FeedbackFilter("rating", ("true", True, "up"))),
        ("rating=false", FeedbackFilter("rating", ("false", False, "down"))),
        ("solved=true", FeedbackFilter("solved", ("true", True))),
        ("stars=4", FeedbackFilter("stars", ("4", 4))),
        ("note=a=b", FeedbackFilter("note", ("a=b",))),
        ("note=NaN", FeedbackFilter("note", ("NaN",))),
        ('note="x"', FeedbackFilter("note", ('"x"',))),
        ("a\0b", FeedbackFilter("a\ufffdb")),
    ],
)
def test_feedback(text: str | None, expected: FeedbackFilter | None) -> None:
    assert _feedback(text) == expected


def test_limits_of_scores_need_a_rubric() -> None:
    assert _score(RequestQuery()) is None
    with pytest.raises(InvalidRequest) as caught:
        _score(RequestQuery(max_score=3))
    assert caught.value.param == "max_score"
