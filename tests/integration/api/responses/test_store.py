"""Responses in the database, and their retention."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.store import BatchStore
from api.files.store import FileStore, Purpose
from api.jobs.retention import BATCH, Retention
from api.jobs.retention_store import RetentionStore
from api.responses.store import ResponseStore
from shared.domain.job import Job, JobSummary
from shared.domain.log_level import LogLevel
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.response import ResponseFacts
from shared.postgres.job_store import JobStore
from shared.postgres.store import seconds
from shared.postgres.tables import BatchRow, JobRow, ResponseRow
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.support.metrics import api_metrics

FACTS = ResponseFacts({"store": True}, [{"type": "message", "content": "x\0"}], "resp_1", background=True)
# The input is read on its own.
READ_BACK = replace(FACTS, input=[])


@pytest.fixture
def responses(database: AsyncEngine) -> ResponseStore:
    return ResponseStore(database)


@pytest.fixture
def retention(database: AsyncEngine, logs: EventLog) -> Retention:
    return Retention(RetentionStore(database), logs, api_metrics(), retention_s=3600)


def new(owner: Owner, facts: ResponseFacts | None = FACTS) -> NewJob:
    return NewJob(owner, "m", 3, GenerateRequest(prompt="x"), response=facts)


def summary(job: Job) -> JobSummary:
    return JobSummary(**{member.name: getattr(job, member.name) for member in fields(JobSummary)})


async def count(database: AsyncEngine, table: type[JobRow | ResponseRow]) -> int:
    async with database.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def age(database: AsyncEngine, age_s: float, *job_ids: str) -> None:
    """Complete jobs, with an end `age_s` seconds ago."""
    statement = (
        update(JobRow).where(JobRow.id.in_(job_ids)).values(finished_at=func.now() - seconds(age_s), status="completed")
    )
    async with database.connect() as connection:
        await connection.execute(statement)


class TestInserting:
    async def test_a_response_is_inserted_with_its_job(
        self, store: JobStore, responses: ResponseStore, owner: Owner
    ) -> None:
        job, created = await store.insert(new(owner))
        found = await responses.get(job.id, owner.project_id)
        assert created
        assert found is not None
        assert (found.job, found.facts) == (summary(job), READ_BACK)
        assert await responses.input(job.id, owner.project_id) == FACTS.input
        assert found.id == job.id.replace("job_", "resp_")

    async def test_responses_and_plain_jobs_share_a_group_commit(
        self, database: AsyncEngine, store: JobStore, responses: ResponseStore, owner: Owner
    ) -> None:
        facts = [replace(FACTS, request_params={"user": str(number)}) if number % 3 else None for number in range(60)]
        inserted = await asyncio.gather(*(store.insert(new(owner, item)) for item in facts))
        for (job, _), expected in zip(inserted, facts, strict=True):
            found = await responses.get(job.id, owner.project_id)
            assert (found.facts if found is not None else None) == (expected and replace(expected, input=[]))
        assert await count(database, ResponseRow) == 40

    async def test_a_response_that_cannot_be_inserted_leaves_no_job(
        self, database: AsyncEngine, store: JobStore, owner: Owner
    ) -> None:
        with pytest.raises(DBAPIError):
            await store.insert(new(owner, replace(FACTS, previous_id="\0")))
        assert (await count(database, JobRow), await count(database, ResponseRow)) == (0, 0)

    async def test_an_idempotency_key_creates_one_response(
        self, database: AsyncEngine, store: JobStore, owner: Owner
    ) -> None:
        key = Idempotency("k", "digest")
        (one, first), (other, second) = await asyncio.gather(
            store.insert(new(owner), key), store.insert(new(owner), key)
        )
        assert one.id == other.id
        assert {first, second} == {True, False}
        assert await count(database, ResponseRow) == 1

    async def test_a_response_of_another_project_is_not_found(
        self, store: JobStore, responses: ResponseStore, owner: Owner
    ) -> None:
        job, _ = await store.insert(new(owner))
        assert await responses.get(job.id, owner.project_id + 1) is None

    async def test_deleting_the_job_deletes_the_response(
        self, database: AsyncEngine, store: JobStore, workers: Workers, owner: Owner
    ) -> None:
        job, _ = await store.insert(new(owner))
        assert not await store.delete(job.id, owner.project_id), "it has not ended"
        assert await count(database, ResponseRow) == 1
        await age(database, 0, job.id)
        assert await store.delete(job.id, owner.project_id)
        assert (await count(database, JobRow), await count(database, ResponseRow)) == (1, 0)
        assert not await store.delete(job.id, owner.project_id)


class TestRetention:
    async def test_jobs_past_their_retention_are_deleted(
        self, database: AsyncEngine, store: JobStore, retention: Retention, owner: Owner
    ) -> None:
        inserted = await asyncio.gather(
            *(store.insert(new(owner, FACTS if n % 2 else None)) for n in range(BATCH + 50))
        )
        ids = [job.id for job, _ in inserted]
        old, young, waiting = ids[: BATCH + 10], ids[BATCH + 10 : -5], ids[-5:]
        await age(database, 3601, *old)
        await age(database, 3500, *young)
        assert await retention.sweep() == len(old)
        assert await retention.sweep() == 0
        async with database.connect() as connection:
            remaining = set((await connection.execute(select(JobRow.id))).scalars())
        assert remaining == {*young, *waiting}
        assert await count(database, ResponseRow) == sum(n % 2 for n in range(BATCH + 10, BATCH + 50))

    async def test_concurrent_sweeps_delete_each_job_once(
        self, database: AsyncEngine, store: JobStore, retention: Retention, owner: Owner
    ) -> None:
        inserted = await asyncio.gather(*(store.insert(new(owner)) for _ in range(300)))
        await age(database, 3601, *(job.id for job, _ in inserted))
        assert sum(await asyncio.gather(*(retention.sweep() for _ in range(4)))) == 300
        assert await count(database, JobRow) == 0

    async def test_nothing_is_deleted_with_unlimited_retention(
        self, database: AsyncEngine, store: JobStore, owner: Owner, logs: EventLog
    ) -> None:
        job, _ = await store.insert(new(owner))
        await age(database, 1e9, job.id)
        assert await Retention(RetentionStore(database), logs, api_metrics(), retention_s=0).sweep() == 0
        assert await count(database, JobRow) == 1

    @pytest.mark.parametrize("level", [LogLevel.NONE, None])
    async def test_a_response_with_store_false_is_cleared_soon_after_its_end(
        self,
        database: AsyncEngine,
        store: JobStore,
        responses: ResponseStore,
        retention: Retention,
        owner: Owner,
        level: LogLevel | None,
    ) -> None:
        """Also one of an earlier version, whose job has no level."""

        async def insert(*, stored: bool) -> Job:
            made = replace(new(owner, replace(FACTS, stored=stored)), log_level=None if stored else level)
            return (await store.insert(made))[0]

        stored, unstored, running, recent = [await insert(stored=n == 0) for n in range(4)]
        await age(database, 61, stored.id, unstored.id)
        await age(database, 10, recent.id)
        assert await responses.get(unstored.id, owner.project_id) is None
        assert await responses.get(unstored.id, owner.project_id, unstored=True) is not None
        assert await retention.purge() == 1
        assert await retention.purge() == 0
        assert await store.get(unstored.id, owner.project_id) is None
        for job in (stored, running, recent):
            assert await store.get(job.id, owner.project_id) is not None
        async with database.connect() as connection:
            cleared = (await connection.execute(select(JobRow).where(JobRow.id == unstored.id))).one()
        assert (cleared.request, cleared.output, cleared.log, cleared.model) == ({}, None, None, "m")

    async def test_the_jobs_of_an_unfinished_batch_are_not_deleted(
        self, database: AsyncEngine, store: JobStore, retention: Retention, owner: Owner
    ) -> None:
        batches, files = BatchStore(database), FileStore(database)
        file = await files.insert("file-" + "0" * 32, owner, Purpose.BATCH, "in.jsonl", 1)
        batch = await batches.insert(owner, "/v1/completions", file.id, "24h", 3600, None)
        assert batch is not None
        job, _ = await store.insert(new(owner))
        await age(database, 3601, job.id)
        async with database.connect() as connection:
            await connection.execute(update(JobRow).values(batch_id=batch.id, batch_line=1))
            assert await retention.sweep() == 0
            await connection.execute(update(BatchRow).values(ended_at=func.now()))
        assert await retention.sweep() == 1
