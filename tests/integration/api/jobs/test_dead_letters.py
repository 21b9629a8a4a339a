"""Replays of failed jobs."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context.window import ContextWindow
from api.jobs.admission import Admission
from api.jobs.dead_letters import replay
from api.keys.changes import KeyChanges
from api.keys.earlier_work import EarlierWork
from api.keys.store import ApiKeyStore
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import KeyOptions, TokenLimits
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.job_store import JobStore
from tests.support.job_rows import jobs_of


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
    assert [job.id for job in await jobs_of(store, failed.owner.project_id)] == [failed.id]


async def test_the_limits_of_the_key_apply_to_what_the_client_requested(
    store: JobStore, database: AsyncEngine, owner: Owner, earlier_work: EarlierWork, capsys: pytest.CaptureFixture[str]
) -> None:
    """A max_tokens that an earlier limit or default has set is not refused as the client's."""
    keys = ApiKeyStore(database)

    async def limit(**limits: Any) -> None:
        await keys.change(owner.key_id, KeyChanges(options=lambda _: KeyOptions(token_limits=TokenLimits(**limits))))

    async def applied(job: Job) -> int | None:
        async with database.begin() as connection:
            await connection.execute(text("UPDATE jobs SET status = 'failed', error_code = 'attempts_exhausted'"))
        assert await replay(store, admission("m"), earlier_work, job.id) == 0
        replayed = await store.get(capsys.readouterr().out.split()[-1])
        assert replayed is not None
        return replayed.request.sampling.max_tokens

    await limit(max_output=100, default_output=50, on_exceed="clamp")
    jobs = []
    for max_tokens in (None, 200):
        new = NewJob(owner, "m", 3, GenerateRequest(prompt="x", sampling=Sampling(max_tokens=max_tokens)))
        new = await admission("m").admit(await earlier_work.principal(owner), new)
        jobs.append((await store.insert(new))[0])
    assert [job.request.sampling.max_tokens for job in jobs] == [50, 100]
    await limit(max_output=30)
    assert await applied(jobs[0]) == 30, "by default the most"
    assert await replay(store, admission("m"), earlier_work, jobs[1].id) == 1
    assert "this API key allows at most 30 output tokens; got 200" in capsys.readouterr().err
    await limit(max_output=500)
    assert await applied(jobs[1]) == 200
