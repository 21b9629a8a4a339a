"""What may be sent as feedback."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.feedback.schemas import FeedbackCreate, JobFeedbackCreate

JOB = "job_" + "0" * 32


@pytest.mark.parametrize(("value", "stored"), [("up", "up"), ("down", "down"), (True, "up"), (False, "down")])
def test_thumbs(value: str | bool, stored: str) -> None:
    body = FeedbackCreate(job_id=JOB, value=value)
    assert (body.metric, body.value) == ("rating", stored)


@given(st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-(2**53), 2**53) | st.text(max_size=100))
def test_values_keep_their_types(value: bool | float | str) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return
    body = FeedbackCreate(job_id=JOB, metric="m", value=value)
    expected = value.replace("\0", "\ufffd") if isinstance(value, str) else value
    assert body.value == expected
    assert type(body.value) is type(expected)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("value", math.nan), ("value", math.inf), ("value", 2**54), ("value", 10**400), ("value", "x" * 1001),
        ("value", None), ("value", []), ("value", {}), ("value", "\ud800"), ("metric", ""), ("metric", "x" * 65),
        ("metric", "a b"), ("metric", "a\n"), ("comment", "x" * 4001), ("comment", "\ud800"), ("tags", ["x"] * 17),
        ("tags", ["x" * 65]), ("tags", [""]), ("tags", "x"), ("user", "x" * 513), ("token", "x" * 201),
        ("conversation", ""), ("conversation", "x" * 201), ("job_id", 1),
    ],
)  # fmt: skip
def test_what_is_not_possible(member: str, value: Any) -> None:
    target = {} if member == "conversation" else {"job_id": JOB}
    with pytest.raises(ValidationError) as raised:
        FeedbackCreate.model_validate({**target, "metric": "m", "value": 1, member: value})
    assert {error["loc"][0] for error in raised.value.errors()} == {member}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"value": "up", "job_id": JOB, "response_id": "resp_1"}, "response_id"),
        ({"value": "up", "response_id": "resp_1", "conversation": "c"}, "conversation"),
        ({"value": "good", "job_id": JOB}, "value"),
        ({"value": 1, "job_id": JOB}, "value"),
    ],
)
def test_contradictions_name_a_parameter(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as raised:
        FeedbackCreate.model_validate(body)
    (error,) = raised.value.errors()
    assert error["ctx"]["param"] == param


def test_characters_that_postgresql_refuses_are_replaced() -> None:
    body = FeedbackCreate(job_id=JOB, metric="m", value="a\0", comment="b\0", tags=["c\0"])
    assert (body.value, body.comment, body.tags) == ("a\ufffd", "b\ufffd", ["c\ufffd"])


def test_ratings_of_jobs_are_thumbs_only() -> None:
    with pytest.raises(ValidationError):
        JobFeedbackCreate.model_validate({"rating": "sideways"})
