"""The running jobs of workers."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.fleet.store import RunningJobs, RunningJobsStore
from shared.domain.owner import Owner
from tests.support.job_rows import add_job


async def test_running_jobs_by_worker(database: AsyncEngine, owner: Owner) -> None:
    for worker, priority in (("a", 3), ("a", 0), ("a", 9), ("b", 9)):
        await add_job(database, owner, status="in_progress", worker=worker, priority=priority)
    await add_job(database, owner, status="cancelling", worker="b", priority=3)
    await add_job(database, owner, status="queued", attempt=0)
    await add_job(database, owner, worker="a", ended_s_ago=1)
    found = await RunningJobsStore(database).by_worker()
    assert found == {"a": RunningJobs(2, 1), "b": RunningJobs(1, 1)}
