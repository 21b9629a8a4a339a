"""Jobs of which nothing is to be kept are purged within a minute after their end, in PostgreSQL and in Redis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisUnavailable
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs import retention as retention_module
from api.jobs.retention import PURGE_INTERVAL_S, UNLOGGED_S, Retention
from api.jobs.retention_store import RetentionStore
from shared.domain.errors import KeyReused
from shared.domain.events import EventType, event
from shared.domain.job import Job
from shared.domain.log_level import LogLevel
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.engine import transaction
from shared.postgres.job_store import JobStore
from shared.redis.carried_requests import carried
from shared.redis.event_log import Append, EventLog
from tests.conftest import Workers
from tests.integration.api.request_log.test_rows import ended
from tests.support.metrics import api_metrics

CANARY = "the canary sings"
REQUEST = GenerateRequest(prompt=CANARY)


@pytest.fixture
def retention(database: AsyncEngine, logs: EventLog) -> Retention:
    return Retention(RetentionStore(database), logs, api_metrics(), retention_s=0)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 2)
    monkeypatch.setattr(retention_module, "PAUSE_S", 0)


async def unlogged(store: JobStore, workers: Workers, owner: Owner, **changes: Any) -> Job:
    values = {"request": REQUEST, "metadata": {"note": CANARY}, "log_level": LogLevel.NONE, **changes}
    return await ended(store, workers, owner, **values)


async def rows_of(database: AsyncEngine) -> str:
    async with database.connect() as connection:
        return str((await connection.execute(text("SELECT to_json(jobs)::text FROM jobs"))).scalars().all())


def test_a_job_is_purged_within_a_minute() -> None:
    assert UNLOGGED_S + 1.1 * PURGE_INTERVAL_S < 60


async def test_all_that_is_due_is_purged(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, logs: EventLog, retention: Retention,
    redis: Redis,
) -> None:  # fmt: skip
    jobs = [await unlogged(store, workers, owner) for _ in range(5)]
    kept = await ended(store, workers, owner)
    for job in (*jobs, kept):
        await logs.append([Append(job.id, 1, [event(1, EventType.STARTED, {"attempt": 1, "text": CANARY})])])
    assert await retention.purge() == 0, "clients have some time to read them"
    assert await retention.purge(unlogged_s=0) == 5
    assert CANARY not in await rows_of(database)
    assert {key.decode().split(":")[2] async for key in redis.scan_iter("hr:log:*")} == {kept.id}
    assert [await store.get(job.id) for job in jobs] == [None] * 5
    assert await store.get(kept.id) is not None
    assert await retention.purge(unlogged_s=0) == 0


async def test_what_others_have_locked_does_not_stop_a_round(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, retention: Retention
) -> None:
    """Processes that take parts of the same portion would otherwise leave all others until their next rounds."""
    jobs = [await unlogged(store, workers, owner) for _ in range(5)]
    async with transaction(database) as other:
        await other.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": jobs[0].id})
        assert await retention.purge(unlogged_s=0) == 4
    assert await retention.purge(unlogged_s=0) == 1
    assert [await store.get(job.id) for job in jobs] == [None] * 5


async def test_the_rows_wait_until_redis_has_forgotten_the_log(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, logs: EventLog, retention: Retention,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Otherwise nothing would find the log in Redis afterwards."""
    await unlogged(store, workers, owner)

    async def unavailable(*_: str) -> None:
        raise RedisUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(logs, "delete", unavailable)
        with pytest.raises(RedisUnavailable):
            await retention.purge(unlogged_s=0)
    assert CANARY in await rows_of(database)
    assert await retention.purge(unlogged_s=0) == 1


async def test_an_idempotency_key_keeps_no_digest_and_is_not_used_again(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, retention: Retention
) -> None:
    key = Idempotency("k", "digest of the request")
    new = NewJob(owner, "m", 3, REQUEST, log_level=LogLevel.NONE)
    job, _ = await store.insert(new, key)
    again, created = await store.insert(new, key)
    assert (again.id, created) == (job.id, False)
    assert await workers("w").claim(job.id) is not None
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET status = 'completed', finished_at = now(), worker = NULL"))
    assert await retention.purge(unlogged_s=0) == 1
    async with database.connect() as connection:
        row = (await connection.execute(text("SELECT key, job_id, request_sha256 FROM idempotency_keys"))).one()
    assert tuple(row) == ("k", job.id, "")
    with pytest.raises(KeyReused, match="was deleted"):
        await store.insert(new, key)


async def test_a_job_of_a_batch_is_kept_until_the_results_are_written(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, retention: Retention
) -> None:
    await unlogged(store, workers, owner)
    async with database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO batches (id, project_id, key_id, endpoint, input_file_id, completion_window, status,"
                " expires_at)"
                " VALUES ('batch_1', :project, :key, '/v1/completions', 'file-1', '24h', 'in_progress', now())"
            ),
            {"project": owner.project_id, "key": owner.key_id},
        )
        await connection.execute(
            text("UPDATE jobs SET batch_id = 'batch_1', batch_line = 1, finished_at = now() - interval '1 h'")
        )
    assert await retention.purge(unlogged_s=0) == 0
    async with database.begin() as connection:
        await connection.execute(text("UPDATE batches SET ended_at = now() - interval '30 s'"))
    assert await retention.purge() == 0, "its client has some time too"
    assert await retention.purge(unlogged_s=20) == 1
    assert CANARY not in await rows_of(database)


async def test_its_request_is_not_beside_the_hint_in_redis(store: JobStore, owner: Owner) -> None:
    new = NewJob(owner, "m", 3, REQUEST)
    job, _ = await store.insert(new)
    unlogged_job, _ = await store.insert(replace(new, log_level=LogLevel.NONE))
    assert carried(job) is not None
    assert carried(unlogged_job) is None
