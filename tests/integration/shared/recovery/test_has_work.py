"""One query tells a sweep whether there is anything to do."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.job import Job
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Workers

WITHHELD_FOR_S = 10.0


async def submit(store: JobStore, owner: Owner, model: str = "m", **more: Any) -> Job:
    job, _ = await store.insert(NewJob(owner, model, 3, GenerateRequest(prompt="x"), **more))
    return job


@pytest.fixture
async def busy(store: JobStore, workers: Workers, owner: Owner) -> Job:
    """A queued job of a model with a live worker, which runs another one. None of them needs a sweep."""
    await workers("w").heartbeat("m", slots=2, running=1, lease_s=60)
    running = await submit(store, owner, start_within_s=60.0, finish_within_s=90.0)
    assert await workers("w").claim(running.id) is not None
    return await submit(store, owner, start_within_s=60.0, finish_within_s=90.0)


async def has_work(store: RecoveryStore, *, recover: bool = True) -> bool:
    return await store.has_work(recover=recover, withheld_for_s=WITHHELD_FOR_S)


async def test_queued_and_running_jobs_of_live_workers_need_no_sweep(recovery_store: RecoveryStore, busy: Job) -> None:
    assert not await has_work(recovery_store)


@pytest.mark.usefixtures("busy")
async def test_lost_jobs_count_if_the_sweep_recovers_them(
    store: JobStore, recovery_store: RecoveryStore, workers: Workers, owner: Owner
) -> None:
    await workers("dead").heartbeat("m", slots=1, running=1, lease_s=-1)
    job = await submit(store, owner)
    assert await workers("dead").claim(job.id) is not None
    assert [lost.job_id for lost in await recovery_store.lost()] == [job.id]
    assert await has_work(recovery_store)
    assert not await has_work(recovery_store, recover=False)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(
    "job",
    [{"start_within_s": -1.0}, {"finish_within_s": -1.0}, {"model": "unserved"}],
    ids=["start", "finish", "model"],
)
async def test_a_job_that_is_late_or_that_nobody_runs_is_work(
    store: JobStore, recovery_store: RecoveryStore, owner: Owner, job: dict[str, Any]
) -> None:
    await submit(store, owner, **job)
    assert await has_work(recovery_store, recover=False)


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO model_pauses (model) VALUES ('m')",
        "UPDATE workers SET state = 'loading'",
        "UPDATE jobs SET follows = 'job_gone' WHERE id = :job",
        "UPDATE jobs SET unreadable_at = now() - interval '11 s' WHERE id = :job",
    ],
    ids=["paused", "loading", "orphan", "withheld"],
)
async def test_a_queued_job_that_has_to_be_looked_at_is_work(
    recovery_store: RecoveryStore, database: AsyncEngine, busy: Job, change: str
) -> None:
    async with database.begin() as connection:
        await connection.execute(text(change), {"job": busy.id} if ":job" in change else {})
    assert await has_work(recovery_store, recover=False)


async def test_a_job_is_withheld_for_a_while(recovery_store: RecoveryStore, database: AsyncEngine, busy: Job) -> None:
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET unreadable_at = now() WHERE id = :job"), {"job": busy.id})
    assert not await has_work(recovery_store)
