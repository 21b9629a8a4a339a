"""The events of webhooks: which subscriptions include them, their ids and their bodies."""

from __future__ import annotations

from datetime import UTC, datetime

from shared.domain.job import TERMINAL
from shared.domain.webhook_events import (
    OF_JOBS,
    EventType,
    event_body,
    event_id,
    matches,
)


def test_each_end_of_a_job_has_an_event() -> None:
    assert {f"job.{status.value}" for status in TERMINAL} == {one.value for one in EventType if one.group == "job.*"}


def test_a_subscription_includes_types_groups_and_all() -> None:
    assert matches(["job.completed"], "job.completed")
    assert matches(["batch.failed", "job.*"], "job.expired")
    assert matches(["*"], "budget.exceeded")
    assert not matches(["job.completed", "response.*"], "job.failed")
    assert not matches([], "job.failed")


def test_an_id_depends_on_the_object_the_type_and_the_occurrence() -> None:
    first = event_id("job.completed", "job_1")
    assert first == event_id(EventType.JOB_COMPLETED, "job_1")
    assert first.startswith("evt_")
    assert len(first) == 36
    others = {
        event_id("job.failed", "job_1"),
        event_id("job.completed", "job_2"),
        event_id("job.completed", "job_1", "2"),
    }
    assert len(others | {first}) == 4


def test_a_body_has_the_shape_of_openais() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 999_999, UTC)
    body = event_body("evt_1", "job.completed", at, "job_1")
    assert body == {
        "id": "evt_1",
        "object": "event",
        "created_at": 1767323045,
        "type": "job.completed",
        "data": {"id": "job_1"},
    }
    assert event_body("e", "budget.exceeded", at, "budget_1", {"x": 1})["data"] == {"id": "budget_1", "x": 1}


def test_events_of_jobs_are_those_of_jobs_and_responses() -> None:
    assert {one.group for one in OF_JOBS} == {"job.*", "response.*"}
