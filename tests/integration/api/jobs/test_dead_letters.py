"""Replays of failed jobs."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context.window import ContextWindow
from api.jobs.admission import Admission
from api.jobs.dead_letters import replay
from api.keys.earlier_work import EarlierWork
from api.keys.store import ApiKeyStore
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore, NewJob


@pytest.fixture
async def failed(store: JobStore, database: AsyncEngine, owner: Owner) -> Job:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x"), {"a": "b"}))
    async with database.connect() as connection:
        await connection.execute(text("UPDATE jobs SET status = 'failed', error_code = 'attempts_exhausted'"))
    return job


@pytest.fixture
def earlier_work(database: AsyncEngine) -> EarlierWork:
    return EarlierWork(ApiKeyStore(database), cache_s=0)


def admission(model: str) -> Admission:
    registry = Registry({model: SimulatedModel(name=model, engine="simulated")})
    return Admission(registry, ContextWindow(registry))


async def test_a_replay_is_a_new_job_of_the_same_owner(
    store: JobStore, earlier_work: EarlierWork, failed: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(store, admission("m"), earlier_work, failed.id) == 0
    replayed = await store.get(capsys.readouterr().out.split()[-1], failed.owner.project_id)
    assert replayed is not None
    assert (replayed.status, replayed.request) == (JobStatus.QUEUED, failed.request)
    assert replayed.metadata == {"a": "b", "replay_of": failed.id}


async def test_a_replay_for_a_removed_model_is_rejected(
    store: JobStore, earlier_work: EarlierWork, failed: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(store, admission("another"), earlier_work, failed.id) == 1
    assert capsys.readouterr().err.startswith(f"{failed.id} cannot be replayed: The model `m` does not exist")
    assert [job.id for job in await store.page(failed.owner.project_id)] == [failed.id]
