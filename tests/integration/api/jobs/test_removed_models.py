"""Queued jobs of a model that no process serves end with an error; those of a model that any process serves do not."""

from __future__ import annotations

from redis.asyncio import Redis

from api.jobs.removed_models import GRACE_S, RemovedModels
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.events import EventType
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.support.metrics import api_metrics
from tests.support.waiting import eventually


def registry(*names: str) -> Registry:
    return Registry({name: SimulatedModel(name=name, engine="simulated") for name in names})


def removed_models(recovery_store: RecoveryStore, logs: EventLog, redis: Redis, *names: str) -> RemovedModels:
    """The check of an API process with these models. Time is not to be waited for."""
    terminator = JobTerminator(recovery_store, logs, 60, api_metrics())
    return RemovedModels(registry(*names), recovery_store, terminator, redis, grace_s=0.05)


async def submit(store: JobStore, owner: Owner, model: str) -> Job:
    return (await store.insert(NewJob(owner, model, 3, GenerateRequest(prompt="x"))))[0]


async def status(store: JobStore, job: Job) -> JobStatus:
    found = await store.get(job.id)
    assert found is not None
    return found.status


async def test_jobs_without_a_model_and_a_worker_fail(
    recovery_store: RecoveryStore, store: JobStore, logs: EventLog, redis: Redis, owner: Owner
) -> None:
    removed, kept = await submit(store, owner, "removed"), await submit(store, owner, "kept")
    check = removed_models(recovery_store, logs, redis, "kept")
    assert await check.check() == 0, "not at once: other processes may only just have read the file"

    async def failed() -> bool:
        return bool(await check.check())

    await eventually(failed, "the job fails")
    found = await store.get(removed.id)
    assert found is not None
    assert found.error is not None
    assert (found.status, found.error.code) == (JobStatus.FAILED, "model_not_found")
    assert found.error.message == (
        "The model `removed` was removed, and no worker of it is left; submit the job with another model."
    )
    assert [event.type for event in await logs.read(removed.id)] == [EventType.FAILED], "readers receive the end"
    assert await status(store, kept) is JobStatus.QUEUED


async def test_jobs_of_a_model_that_is_served_elsewhere_wait(
    recovery_store: RecoveryStore, store: JobStore, logs: EventLog, redis: Redis, owner: Owner, workers: Workers
) -> None:
    """During a rollout, API processes have different versions of the file. A worker may outlast its model."""
    jobs = [await submit(store, owner, name) for name in ("added", "with-worker", "gone")]
    old = removed_models(recovery_store, logs, redis, "kept")
    newer = RemovedModels(registry("kept", "added"), recovery_store, old._terminator, redis, grace_s=GRACE_S)
    await newer.check()
    await workers("w").heartbeat("with-worker", slots=1, running=0, lease_s=60)

    async def failed() -> bool:
        return bool(await old.check())

    await eventually(failed, "the job of the third model fails")
    assert [await status(store, job) for job in jobs] == [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED]
