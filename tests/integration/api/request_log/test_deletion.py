"""Whoever deletes a job deletes its text from the request log too, also if it is still to be written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs.retention_store import RetentionStore
from api.request_log.bodies import MissingReason
from api.request_log.store import RequestLogStore
from shared.domain.decisions import ContextDecision, Decisions
from shared.domain.log_level import LogLevel
from shared.domain.owner import Owner
from shared.postgres import job_purge
from shared.postgres.job_store import JobStore
from tests.conftest import Workers
from tests.integration.api.request_log.test_bodies import counted, logged, opened, reason, writer_of
from tests.support.metrics import api_metrics
from tests.support.request_log import body_rows, log_rows
from tests.support.waiting import eventually

WAITS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def states(database: AsyncEngine) -> dict[str, str]:
    return {row.job_id: row.body for row in await log_rows(database)}


async def test_a_body_is_deleted_with_its_job(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    deleted, other = [await logged(store, workers, owner) for _ in range(2)]
    await writer_of(database).step()
    assert await store.delete(deleted, owner.project_id)
    assert await states(database) == {deleted: "deleted", other: "kept"}
    assert [row.job_id for row in await body_rows(database)] == [other]
    assert await reason(database, deleted) is MissingReason.DELETED
    (row,) = await log_rows(database, deleted)
    assert (row.model, row.status, row.level) == ("m", "completed", LogLevel.FULL), "its row remains"


async def test_a_body_that_is_still_to_be_written_never_is(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    deleted = await logged(store, workers, owner)
    assert await store.delete(deleted, owner.project_id)
    metrics = api_metrics()
    assert await writer_of(database, metrics=metrics).step() == 0
    assert (await states(database), await body_rows(database)) == ({deleted: "deleted"}, [])
    assert counted(metrics, "lost") == 0, "nothing was lost: somebody has deleted it"


async def test_a_deletion_waits_for_a_body_that_is_being_written(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has read the job before it was deleted, and inserts the body afterwards."""
    job_id = await logged(store, workers, owner)
    has_read, may_write = asyncio.Event(), asyncio.Event()
    keep = RequestLogStore.keep

    async def held(self: RequestLogStore, *arguments: Any) -> None:
        has_read.set()
        await may_write.wait()
        await keep(self, *arguments)

    monkeypatch.setattr(RequestLogStore, "keep", held)
    writing = asyncio.create_task(writer_of(database).step())
    await has_read.wait()
    deletion = asyncio.create_task(store.delete(job_id, owner.project_id))

    async def waits() -> bool:
        async with database.connect() as connection:
            return (await connection.execute(text(WAITS))).first() is not None

    await eventually(waits, "the deletion waits for the writer")
    may_write.set()
    assert await writing == 1
    assert await deletion == [job_id]
    assert (await states(database), await body_rows(database)) == ({job_id: "deleted"}, [])


async def test_a_job_and_its_body_are_deleted_together_or_not_at_all(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends between the two would otherwise leave a body that nothing looks for any more."""
    job_id = await logged(store, workers, owner)
    await writer_of(database).step()

    async def dies(*_: Any) -> None:
        raise RuntimeError("the process ends")

    with monkeypatch.context() as patched:
        patched.setattr(job_purge, "delete_bodies", dies)
        with pytest.raises(RuntimeError):
            await store.delete(job_id, owner.project_id)
    assert await store.get(job_id, owner.project_id) is not None
    assert await opened(database, job_id)
    assert await store.delete(job_id, owner.project_id)
    assert await reason(database, job_id) is MissingReason.DELETED


async def test_the_bodies_of_a_conversations_summaries_are_deleted_with_a_job_of_it(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    decisions = Decisions(context=ContextDecision(strategy="summarize", conversation="conv_1"))
    summary = await logged(store, workers, owner, kind="summary", decisions=decisions)
    job_id = await logged(store, workers, owner, decisions=decisions)
    await writer_of(database).step()
    assert set(await store.delete(job_id, owner.project_id)) == {job_id, summary}
    assert (await states(database), await body_rows(database)) == ({summary: "deleted", job_id: "deleted"}, [])


async def test_without_a_body_nothing_changes(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    job_id = await logged(store, workers, owner, LogLevel.METADATA)
    assert await store.delete(job_id, owner.project_id)
    assert await states(database) == {job_id: "none"}
    assert await reason(database, job_id) is MissingReason.LEVEL


@pytest.mark.parametrize("cached", [False, True])
async def test_a_body_outlives_a_job_that_has_only_become_old(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, cached: bool
) -> None:
    """How long the log keeps it is a setting of its own. A job that the response cache may have shared is purged
    first."""
    job_id = await logged(store, workers, owner)
    await writer_of(database).step()
    if cached:
        async with database.begin() as connection:
            await connection.execute(text("UPDATE jobs SET cache_key = '\\x00'"))
    assert await RetentionStore(database).delete_ended(0, 10) == 1
    assert await store.get(job_id, owner.project_id) is None
    assert await opened(database, job_id)
