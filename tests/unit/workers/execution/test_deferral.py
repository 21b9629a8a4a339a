"""How long a job waits for a busy upstream, and when it cannot wait."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared.domain.job import Attempt, Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from workers.engines.base import BusyReason, UpstreamBusy
from workers.execution.deferral import deferral_s, timer_s

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
JOB = Job(
    id="job_1",
    owner=Owner(1, 1),
    model="m",
    status=JobStatus.IN_PROGRESS,
    priority=3,
    created_at=NOW,
    request=GenerateRequest(prompt="x"),
    attempts=(Attempt(1, "w", NOW),),
)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def busy(retry_after_s: float | None = None, max_wait_s: float = 600) -> UpstreamBusy:
    return UpstreamBusy("busy", BusyReason.RATE_LIMIT, retry_after_s=retry_after_s, max_wait_s=max_wait_s)


@pytest.mark.parametrize(
    ("waited_s", "retry_after_s", "least", "most"),
    [
        (0, None, 0.5, 1),
        (20, None, 5, 10),
        (500, None, 15, 30),
        (0, 0, 0.5, 1),
        (0, 20, 20, 22),
        (300, 0.02, 2.5, 5),
        (300, 100, 100, 110),
    ],
)
def test_the_delay_grows_and_is_at_least_the_one_named(
    waited_s: float, retry_after_s: float | None, least: float, most: float
) -> None:
    job = replace(JOB, deferred_since=NOW - seconds(waited_s))
    delays = [deferral_s(job, busy(retry_after_s), NOW) for _ in range(50)]
    assert all(delay is not None and least <= delay <= most for delay in delays), delays


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (JOB, busy(max_wait_s=0)),
        (JOB, busy(retry_after_s=601)),
        (JOB, busy(retry_after_s=float("inf"))),
        (replace(JOB, deferred_since=NOW - seconds(590)), busy(retry_after_s=20)),
        (replace(JOB, finish_before=NOW + seconds(10)), busy(retry_after_s=11)),
        (replace(JOB, start_before=NOW + seconds(10)), busy(retry_after_s=11)),
    ],
)
def test_a_job_that_cannot_wait(job: Job, error: UpstreamBusy) -> None:
    assert deferral_s(job, error, NOW) is None


def test_the_start_deadline_of_a_started_job_does_not_count() -> None:
    job = replace(JOB, start_before=NOW + seconds(10), attempts=(Attempt(1, "v", NOW), Attempt(2, "w", NOW)))
    assert deferral_s(job, busy(retry_after_s=11), NOW) is not None


def test_the_timer_fires_after_the_delay() -> None:
    assert all(timer_s(delay_s) > delay_s for delay_s in (0, 0.5, 3600))
