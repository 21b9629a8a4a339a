"""A row that this version cannot read is set aside; it stops neither other jobs nor the process."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.errors import UnreadableRow
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.support.job_rows import jobs_of
from tests.support.metrics import api_metrics

MAX_ATTEMPTS = 3
NEWER_REQUEST: dict[str, Any] = {"prompt": "x", "novel": {"option": 1}, "sampling": {"n": 2}}
# Values that no version writes, or only a newer one.
DAMAGED = {
    "request": "'{\"novel\": 1}'",
    "attempts": "'[{\"number\": 1}]'",
    "status": "'held'",
    "metadata": "'[]'",
    "usage": "'[1]'",
    "output": "'[[]]'",
}


@pytest.fixture
def sent() -> list[Hint]:
    return []


@pytest.fixture
def sweeper(recovery_store: RecoveryStore, logs: EventLog, sent: list[Hint]) -> Sweeper:
    terminator = JobTerminator(recovery_store, logs, 60, api_metrics())
    return Sweeper(
        recovery_store, terminator, sent.append, api_metrics(), interval_s=1, lease_s=6, max_attempts=MAX_ATTEMPTS
    )


async def submit(store: JobStore, owner: Owner, **more: Any) -> Job:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x"), **more))
    return job


async def change(database: AsyncEngine, job: Job, assignment: str, **values: Any) -> None:
    async with database.begin() as connection:
        await connection.execute(text(f"UPDATE jobs SET {assignment} WHERE id = :id"), {"id": job.id, **values})  # noqa: S608


async def test_a_claimed_job_waits_for_a_version_that_can_read_it(
    store: JobStore, recovery_store: RecoveryStore, workers: Workers, database: AsyncEngine, owner: Owner,
    sweeper: Sweeper, sent: list[Hint],
) -> None:  # fmt: skip
    newer, other = await submit(store, owner), await submit(store, owner)
    await workers("w").heartbeat("m", slots=2, running=0, lease_s=60)
    await change(database, newer, "request = :request", request=json.dumps(NEWER_REQUEST))
    assert await workers("w").claim(newer.id) is None
    assert (await workers("w").claim(other.id)) is not None
    assert [claim.job_id for claim in await workers("w").list_claims()] == [other.id]
    assert [job.id for job in await store.unreadable()] == [newer.id]
    withheld = await store.summary(newer.id, owner.project_id)
    assert withheld is not None
    assert (withheld.id, withheld.status, withheld.deaths, withheld.attempts) == (newer.id, JobStatus.QUEUED, 0, ())
    assert (withheld.attempt, withheld.started_at) == (0, None), "its deadline to start still holds"
    assert await recovery_store.waiting(["m"], limit=9, older_than_s=0, priorities=range(10)) == [], "it is withheld"
    with pytest.raises(UnreadableRow, match=newer.id):
        await store.get(newer.id)

    await change(database, newer, "unreadable_at = unreadable_at - interval '1 hour'")
    await sweeper.sweep()
    assert not sent, "this version cannot read it either"

    await change(database, newer, "request = :request", request='{"prompt": "x"}')
    await sweeper.sweep()
    assert [hint.job_id for hint in sent] == [newer.id]
    assert await store.unreadable() == []
    claimed = await workers("w").claim(newer.id)
    assert claimed is not None
    assert (claimed.deaths, len(claimed.attempts)) == (0, 1)


@pytest.mark.parametrize("column", ["request", "attempts"])
async def test_a_withheld_job_is_listed_whatever_is_unreadable(
    store: JobStore, workers: Workers, database: AsyncEngine, owner: Owner, column: str
) -> None:
    job = await submit(store, owner)
    await change(database, job, f"{column} = {DAMAGED[column]}")
    assert await workers("w").claim(job.id) is None
    (listed,) = await store.unreadable()
    assert (listed.id, listed.model) == (job.id, "m")


async def test_jobs_that_this_version_cannot_read_do_not_hold_back_others(
    store: JobStore, database: AsyncEngine, owner: Owner, sweeper: Sweeper, sent: list[Hint]
) -> None:
    newer = await submit(store, owner)
    await change(database, newer, "request = :request", request=json.dumps(NEWER_REQUEST))
    async with database.begin() as connection:
        names = "project_id, key_id, model, status, priority, request, metadata"
        copies = f"INSERT INTO jobs (id, {names}) SELECT id || lpad(n::text, 3, '0'), {names} FROM jobs"  # noqa: S608
        await connection.execute(text(f"{copies}, generate_series(1, 120) AS n"))
    older = await submit(store, owner)
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE jobs SET unreadable_at = now() - interval '1 hour', dispatched_at = NULL")
        )
    for _ in range(15):
        await sweeper.sweep()
    assert [hint.job_id for hint in sent] == [older.id]


@pytest.mark.parametrize("column", DAMAGED)
async def test_a_sweep_handles_the_other_jobs(
    store: JobStore, workers: Workers, database: AsyncEngine, owner: Owner, sweeper: Sweeper, column: str
) -> None:
    """Also a job whose attempts are exhausted, which the sweeper has to end."""
    jobs = [await submit(store, owner) for _ in range(2)]
    for job in jobs:
        assert await workers(f"dead-{job.id}").claim(job.id) is not None
        await change(database, job, f"deaths = {MAX_ATTEMPTS - 1}")
    await change(database, jobs[0], f"{column} = {DAMAGED[column]}")
    await sweeper.sweep()
    await sweeper.sweep()
    found = await store.get(jobs[1].id)
    assert found is not None
    assert (found.status, found.error and found.error.code) == (JobStatus.FAILED, "attempts_exhausted")
    page = await jobs_of(store, owner.project_id)
    assert jobs[1].id in [job.id for job in page]


async def test_an_unreadable_request_is_no_obstacle_to_the_end_of_a_job(
    store: JobStore, workers: Workers, database: AsyncEngine, owner: Owner, sweeper: Sweeper
) -> None:
    """Its output has as many choices as the request asks for, even though the rest of the request is not read."""
    exhausted, late = await submit(store, owner), await submit(store, owner, finish_within_s=3600)
    assert await workers("dead").claim(exhausted.id) is not None
    await change(database, exhausted, f"deaths = {MAX_ATTEMPTS - 1}")
    await change(database, late, "finish_before = now() - interval '1 s'")
    for job in (exhausted, late):
        await change(database, job, "request = :request, choices = 2", request=json.dumps(NEWER_REQUEST))
    await sweeper.sweep()
    for job, status in ((exhausted, JobStatus.FAILED), (late, JobStatus.CANCELLED)):
        await change(database, job, "request = :request", request='{"prompt": "x"}')
        found = await store.get(job.id)
        assert found is not None
        assert (found.status, len(found.output)) == (status, 2)


async def test_a_job_that_cannot_be_ended_does_not_stop_the_sweeps(
    store: JobStore, workers: Workers, database: AsyncEngine, owner: Owner, sweeper: Sweeper, logs: EventLog,
    redis: Any, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its log has an entry that is not an event. The fault is logged once, with a traceback, not at each sweep."""
    jobs = [await submit(store, owner) for _ in range(2)]
    for job in jobs:
        assert await workers(f"dead-{job.id}").claim(job.id) is not None
        await change(database, job, f"deaths = {MAX_ATTEMPTS - 1}")
    await redis.xadd(f"hr:log:{jobs[0].id}", {"t": "started", "e": "not JSON"}, id="1-0")
    await sweeper.sweep()
    await sweeper.sweep()
    found = await store.get(jobs[1].id)
    assert found is not None
    assert found.status is JobStatus.FAILED
    assert sum("cannot be handled" in record.message for record in caplog.records) == 1
