"""The conditions of the list of jobs: in addresses, and as words of the search box."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest

from api.console.jobs.conditions import Conditions, parse, read
from shared.domain.job import JobStatus

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
FULL = Conditions(
    statuses=(JobStatus.FAILED, JobStatus.EXPIRED),
    model="llama-3-70b",
    project="team docs",
    key="key_12",
    user='Ann "B" \\ é&=?#',
    metadata=("team=docs", "a b=c=d"),
    range="24h",
    start=NOW - timedelta(days=2),
    end=NOW,
)


@pytest.mark.parametrize("conditions", [Conditions(), FULL])
def test_an_address_and_the_words_say_the_same(conditions: Conditions) -> None:
    path, _, query = conditions.address().partition("?")
    assert path == "jobs"
    assert read(parse_qsl(query)).conditions == conditions
    found = parse(conditions.words())
    assert (found.conditions, list(found.problems)) == (conditions, [])


def test_words_that_people_use() -> None:
    found = parse('status:failed,running model:x user:"Ann B" meta.team=docs last:24h').conditions
    assert found == Conditions(
        statuses=(JobStatus.FAILED, JobStatus.IN_PROGRESS),
        model="x",
        user="Ann B",
        metadata=("team=docs",),
        range="24h",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("backpressure", "neither the id of a job nor a condition"),
        ("status:broken", "There is no status"),
        ("meta.team", "neither"),
        ("last:3y", "There is no time range"),
        ("from:yesterday", "is not a time"),
        ("from:0001-01-01T00:00+10:00", "is not a time"),
        ("to:9999-12-31T23:59-10:00", "is not a time"),
        ("user:a\0b", "NUL"),
        ("meta.a=\0", "NUL"),
        ('user:"Ann', "quotation mark"),
        ("status:", "neither"),
        (" ".join(f"meta.k{index}=v" for index in range(5)), "At most 4"),
    ],
)
def test_what_is_not_understood_is_said(text: str, problem: str) -> None:
    assert any(problem in said for said in parse(text).problems)


def test_empty_fields_of_a_form_are_absent() -> None:
    pairs = [("model", ""), ("user", " "), ("meta", ""), ("from", ""), ("status", ""), ("after", "job_1")]
    assert read(pairs).conditions == Conditions()


def test_a_range_counts_from_now_within_other_limits() -> None:
    query = FULL.query(NOW, all_projects=True)
    assert (query.created_after, query.created_before) == (NOW - timedelta(hours=24), NOW)


def test_operators_search_all_projects_unless_they_name_one() -> None:
    assert Conditions().query(NOW, all_projects=True).project == "*"
    assert Conditions(project="a").query(NOW, all_projects=True).project == "a"
    assert Conditions().query(NOW, all_projects=False).project is None
