"""Each job that ends has a row of the request log, written with its end; unless nothing is to be kept of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log.partitions import LOG, Partitions
from shared.domain.decisions import ContextDecision, Decisions
from shared.domain.errors import ErrorCode
from shared.domain.job import Failure, Job, JobStatus
from shared.domain.log_level import LogLevel
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import RequestContext
from shared.domain.result import JobResult
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Workers
from tests.integration.api.cache.test_cached_answers import LOG as EVENTS
from tests.integration.api.cache.test_cached_answers import answer, completed, new_job, run
from tests.support.request_log import log_rows


def result(**changes: Any) -> JobResult:
    return replace(completed(EVENTS), **{"cacheable": False, **changes})


async def ended(store: JobStore, workers: Workers, owner: Owner, ends: JobResult | None = None, **changes: Any) -> Job:
    new = replace(NewJob(owner, "m", 3, GenerateRequest(prompt="x")), **changes)
    job, _ = await store.insert(new)
    assert await workers("w").claim(job.id) is not None
    assert await workers("w").finish(job.id, 1, ends or result())
    return job


async def test_a_row_says_who_has_used_what(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    ends = result()
    job = await ended(
        store, workers, replace(owner, end_user="alice"), ends, requested_model="auto", kind="summary",
        request_context=RequestContext("req_1", None),
        decisions=Decisions(context=ContextDecision(strategy="summarize", conversation="conv_1")),
    )  # fmt: skip
    (row,) = await log_rows(database)
    assert (row.job_id, row.project_id, row.key_id, row.end_user) == (job.id, owner.project_id, owner.key_id, "alice")
    assert (row.requested_model, row.model, row.kind, row.batch_id) == ("auto", "m", "summary", None)
    assert (row.conversation, row.request_id) == ("conv_1", "req_1")
    assert (row.status, row.error_code, row.answered) == ("completed", None, False)
    assert (row.created_at, row.first_token_at, row.ended_at) == (job.created_at, ends.first_token_at, ends.finished_at)
    assert (row.input_tokens, row.output_tokens) == (3, 2)
    assert (row.level, row.body) == ("metadata", "none")
    assert (row.refused, row.refusal_source) == (None, None)


@pytest.mark.parametrize(
    ("level", "body"),
    [(LogLevel.METADATA, "none"), (LogLevel.REDACTED, "pending"), (LogLevel.FULL, "pending")],
)
async def test_a_body_is_written_afterwards_if_one_is_to_be_kept(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, level: LogLevel, body: str
) -> None:
    await ended(store, workers, owner, log_level=level)
    (row,) = await log_rows(database)
    assert (row.level, row.body) == (level, body)


@pytest.mark.parametrize("stored", ["none", "a level of a newer version"])
async def test_of_a_job_of_which_nothing_is_to_be_kept_there_is_no_row(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, stored: str
) -> None:
    job, _ = await store.insert(replace(NewJob(owner, "m", 3, GenerateRequest(prompt="x")), log_level=LogLevel.NONE))
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET log_level = :level"), {"level": stored})
    assert await workers("w").claim(job.id) is not None
    assert await workers("w").finish(job.id, 1, result())
    found = await store.get(job.id)
    assert found is not None
    assert (found.status, found.log_level) == (JobStatus.COMPLETED, LogLevel.NONE)
    assert await log_rows(database) == []


async def test_jobs_without_an_answer_have_rows(
    store: JobStore, recovery_store: RecoveryStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    failed = Failure(ErrorCode.ENGINE_ERROR, "it quotes the prompt")
    await ended(store, workers, owner, result(status=JobStatus.FAILED, error=failed))
    queued, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    cancelled = result(status=JobStatus.CANCELLED, attempts=(), first_token_at=None)
    assert await recovery_store.end_queued(queued.id, 0, cancelled) is not None
    first, second = await log_rows(database)
    assert (first.status, first.error_code) == ("failed", "engine_error")
    assert (second.job_id, second.status, second.first_token_at) == (queued.id, "cancelled", None)
    assert not any("quotes" in str(value) for value in first)


async def test_an_answer_of_the_response_cache_has_a_row(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await run(store, workers, new_job(owner))
    job = await answer(store, replace(owner, end_user="bob"), log_level=LogLevel.FULL)
    assert job is not None
    _, row = await log_rows(database)
    assert (row.job_id, row.end_user, row.answered, row.status) == (job.id, "bob", True, "completed")
    assert (row.level, row.body, row.input_tokens, row.output_tokens) == ("full", "pending", 3, 2)
    assert (row.created_at, row.ended_at) == (job.created_at, job.finished_at)


async def test_a_follower_has_a_row_of_its_own_level(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    leader, _ = await store.coalesce(new_job(owner)) or pytest.fail("it leads")
    assert await workers("w").claim(leader.id) is not None
    follower, _ = await store.coalesce(new_job(owner, log_level=LogLevel.REDACTED)) or pytest.fail("it follows")
    assert follower.follows == leader.id
    assert await workers("w").finish(leader.id, 1, replace(completed(EVENTS), leads=True))
    while await store.settle([leader.id]):
        pass
    own, of_follower = await log_rows(database)
    assert (own.job_id, own.level, own.answered) == (leader.id, "metadata", False)
    assert (of_follower.job_id, of_follower.level, of_follower.body) == (follower.id, "redacted", "pending")
    assert (of_follower.answered, of_follower.status) == (True, "completed")


async def test_rows_are_in_the_partition_of_their_day(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    today = datetime.now(UTC).date()
    assert await Partitions(database).create(LOG, today) == "created"
    for days in (0, 1):
        await ended(store, workers, owner, result(finished_at=datetime.now(UTC) - timedelta(days=days)))
    async with database.connect() as connection:
        tables = (
            await connection.execute(text("SELECT tableoid::regclass::text FROM request_log ORDER BY 1"))
        ).scalars()
        assert set(tables) == {f"request_log_{today:%Y%m%d}", "request_log_default"}
