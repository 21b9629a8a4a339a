"""Searches of jobs: their conditions, pages, bounds and plans."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs import search_store
from api.jobs.search_store import Columns, JobFilters, JobPage, JobSearchStore, MatchCount, search_statement
from shared.domain.job import JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.engine import transaction
from shared.postgres.job_store import JobStore
from tests.conftest import Workers
from tests.integration.shared.recovery.test_indexes import explained
from tests.support.database import make_owner
from tests.support.job_rows import add_job

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def search(database: AsyncEngine) -> JobSearchStore:
    return JobSearchStore(database)


def ids(page: JobPage) -> list[str]:
    return [job.id for job in page.jobs]


async def add_many(database: AsyncEngine, owner: Owner, count: int) -> None:
    """Completed jobs of the model `m`, one a second until now."""
    rows = """
        INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, created_at, finished_at)
        SELECT 'job_' || lpad(to_hex(((extract(epoch FROM at) * 1000)::bigint)), 12, '0') || repeat('0', 20),
            :project, :key, 'm', 'completed', 3, '{}', '{}', at, at
        FROM generate_series(1, :count) AS n,
            LATERAL (SELECT CAST(:now AS timestamptz) - make_interval(secs => n) AS at) AS t
    """
    async with database.connect() as connection:
        parameters = {"project": owner.project_id, "key": owner.key_id, "count": count, "now": NOW}
        await connection.execute(text(rows), parameters)
        await connection.execute(text("ANALYZE jobs"))


async def test_pages_are_newest_first(search: JobSearchStore, store: JobStore, owner: Owner) -> None:
    jobs = [(await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x"))))[0] for _ in range(5)]
    newest = [job.id for job in reversed(jobs)]
    filters = JobFilters(project_id=owner.project_id)
    first = await search.search(filters, limit=2)
    assert (ids(first), first.cursor, first.partial) == (newest[:2], newest[1], False)
    second = await search.search(filters, limit=2, after=first.cursor)
    assert (ids(second), second.cursor) == (newest[2:4], newest[3])
    last = await search.search(filters, limit=2, after=second.cursor)
    assert (ids(last), last.cursor) == (newest[4:], None)
    assert ids(await search.search(JobFilters(project_id=owner.project_id + 1), limit=2)) == []


async def test_each_condition(search: JobSearchStore, database: AsyncEngine, owner: Owner, workers: Workers) -> None:
    other = await make_owner(database, "other")

    async def add(age_s: float, owner: Owner = owner, **columns: Any) -> str:
        return await add_job(database, owner, now=NOW, ended_s_ago=age_s, took_s=0, **columns)

    plain = await add(10)
    failed = await add(20, status="failed", error_code="engine_error")
    modelled = await add(30, model="n")
    foreign = await add(40, owner=other)
    of_user = await add(50, end_user="ann")
    tagged = await add(60, metadata='{"team":"search","x":"1"}')
    odd = await add(70, metadata='{"team":"se\\"arch","x":"\\u0000"}')
    await add(80, deleted_at=NOW)
    queued = await add_job(database, owner, now=NOW, created_s_ago=90, status="queued", attempt=0)
    running = await add_job(database, owner, now=NOW, created_s_ago=100, status="in_progress", worker="w", model="n")
    cancelling = await add_job(database, owner, now=NOW, created_s_ago=110, status="cancelling", worker="w")
    everything = [plain, failed, modelled, foreign, of_user, tagged, odd, queued, running, cancelling]

    async def found(**conditions: Any) -> list[str]:
        page = await search.search(JobFilters(**conditions), limit=50)
        assert (page.cursor, page.partial) == (None, False)
        return ids(page)

    assert await found() == everything
    assert await found(project_id=other.project_id) == [foreign]
    assert await found(project_id=other.project_id, key_id=other.key_id) == [foreign]
    assert await found(key_id=owner.key_id) == [job for job in everything if job != foreign]
    assert await found(statuses=(JobStatus.FAILED,)) == [failed]
    assert await found(statuses=(JobStatus.FAILED, JobStatus.QUEUED)) == [failed, queued]
    assert await found(statuses=(JobStatus.QUEUED,)) == [queued]
    assert await found(statuses=(JobStatus.IN_PROGRESS, JobStatus.QUEUED)) == [queued, running]
    assert await found(statuses=(JobStatus.CANCELLING,)) == [cancelling]
    assert await found(statuses=(JobStatus.QUEUED,), project_id=other.project_id) == []
    assert await found(model="n") == [modelled, running]
    assert await found(model="n", statuses=(JobStatus.IN_PROGRESS,)) == [running]
    assert await found(model="unknown") == []
    assert await found(end_user="ann") == [of_user]
    assert await found(metadata={"team": "search"}) == [tagged]
    assert await found(metadata={"team": "search", "x": "1"}) == [tagged]
    assert await found(metadata={"team": "search", "x": "2"}) == []
    assert await found(metadata={"team": 'se"arch', "x": "\0"}) == [odd]
    assert await found(metadata={"team": "sea"}) == []
    start, end = NOW - timedelta(seconds=40), NOW - timedelta(seconds=20)
    assert await found(start=start, end=end) == [modelled, foreign]
    assert await found(model="n", start=start, end=end) == [modelled]


async def test_a_value_that_looks_like_a_member_does_not_match(
    search: JobSearchStore, database: AsyncEngine, owner: Owner
) -> None:
    """`{"a":":","b":…}` has the text of a member `:` in it."""
    await add_job(database, owner, ended_s_ago=1, metadata='{"a":":","b":"c"}')
    assert ids(await search.search(JobFilters(metadata={":": ",", "b": "c"}), limit=5)) == []
    assert ids(await search.search(JobFilters(metadata={":": ","}), limit=5)) == []


async def test_rows_of_another_version_are_left_out(
    search: JobSearchStore, database: AsyncEngine, owner: Owner
) -> None:
    good = await add_job(database, owner, ended_s_ago=2)
    await add_job(database, owner, ended_s_ago=1, status="from-the-future")
    assert ids(await search.search(JobFilters(project_id=owner.project_id), limit=5)) == [good]


@pytest.mark.parametrize("conditions", [{}, {"model": "rare"}, {"end_user": "ann"}, {"statuses": (JobStatus.FAILED,)}])
async def test_a_search_in_slices_finds_the_same(
    search: JobSearchStore, database: AsyncEngine, owner: Owner, monkeypatch: pytest.MonkeyPatch,
    conditions: dict[str, Any],
) -> None:  # fmt: skip
    for number in range(60):
        await add_job(
            database, owner, "rare" if number % 7 == 0 else "m", now=NOW, ended_s_ago=number, took_s=0,
            end_user="ann" if number % 11 == 0 else None, status="failed" if number % 13 == 0 else "completed",
        )  # fmt: skip
    filters = JobFilters(**conditions)
    whole = await search.search(filters, limit=100)
    assert whole.jobs
    for name in ("SLICE", "MAX_SLICE"):
        monkeypatch.setattr(search_store, name, 7)
    monkeypatch.setattr(search_store, "RARE", 3)
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await search.search(filters, limit=3, after=cursor)
        assert len(page.jobs) <= 3
        found += ids(page)
        if (cursor := page.cursor) is None:
            break
    assert found == ids(whole)


async def test_a_search_that_takes_too_long_stops_and_can_be_continued(
    search: JobSearchStore, database: AsyncEngine, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_many(database, owner, 500)
    wanted = await add_job(database, owner, "m", now=NOW, ended_s_ago=1000, took_s=0, end_user="ann")
    for name in ("SLICE", "MAX_SLICE", "MIN_SLICE"):
        monkeypatch.setattr(search_store, name, 200)
    filters = JobFilters(end_user="ann")
    page = await search.search(filters, limit=5, budget_s=0)
    assert (ids(page), page.partial) == ([], True)
    assert page.cursor is not None
    pages = 1
    while page.partial:
        page = await search.search(filters, limit=5, after=page.cursor, budget_s=0)
        pages += 1
    assert (ids(page), page.cursor, pages) == ([wanted], None, 3)


async def test_a_count_is_bounded_and_knows_the_newest_job(
    search: JobSearchStore, database: AsyncEngine, owner: Owner
) -> None:
    await add_many(database, owner, 30)
    newest = NOW - timedelta(seconds=1)
    filters = JobFilters(project_id=owner.project_id, model="m")
    assert await search.count(filters, limit=50) == MatchCount(30, True, newest)
    assert await search.count(filters, limit=30) == MatchCount(30, True, newest)
    assert await search.count(filters, limit=29) == MatchCount(29, False, newest)
    page = await search.search(filters, limit=10)
    assert (await search.count(filters, limit=50, after=page.cursor)).count == 20
    assert await search.count(JobFilters(model="n"), limit=50) == MatchCount(0, True, None)


async def test_a_slow_slice_is_stopped_and_repeated_with_fewer_jobs(
    search: JobSearchStore, database: AsyncEngine, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_many(database, owner, 2000)
    sizes = []
    original = search_statement

    def slow(filters: JobFilters, after: str | None, limit: int, size: int, columns: Columns) -> Any:
        sizes.append(size)
        statement, parameters = original(filters, after, limit, size, columns)
        return (statement if size <= 1000 else statement.where(text("pg_sleep(0.01) IS NOT NULL"))), parameters

    monkeypatch.setattr(search_store, "search_statement", slow)
    began = time.monotonic()
    page = await search.search(JobFilters(), limit=500, budget_s=0.5)
    assert (len(page.jobs), page.partial) == (500, False)
    assert time.monotonic() - began < 2
    assert sizes[:3] == [20_000, 2500, 500]


async def test_searches_leave_connections_for_others(database: AsyncEngine, owner: Owner) -> None:
    """At most four of a pool of ten are used at a time."""
    search = JobSearchStore(database)
    used: list[int] = []
    event.listen(
        database.sync_engine, "before_cursor_execute",
        lambda *_: used.append(database.sync_engine.pool.checkedout()),  # type: ignore[attr-defined]
    )  # fmt: skip
    await asyncio.gather(*(search.search(JobFilters(), limit=1) for _ in range(20)))
    assert 1 <= max(used) <= search_store.CONCURRENT


# Rows of a year. A few have a rare model, failed, wait or run.
ROWS = """
INSERT INTO jobs (
    id, project_id, key_id, model, status, priority, request, metadata, created_at, finished_at, worker
)
SELECT 'job_' || lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20),
    CASE WHEN n % 50 = 0 THEN CAST(:other AS bigint) ELSE :project END, :key,
    CASE WHEN n % 3000 = 0 THEN 'rare' ELSE 'm' END,
    CASE n % 1000 WHEN 0 THEN 'failed' WHEN 1 THEN 'queued' WHEN 2 THEN 'in_progress' ELSE 'completed' END, 3,
    '{}', '{}', at, CASE WHEN n % 1000 NOT IN (1, 2) THEN at END, CASE WHEN n % 1000 = 2 THEN 'w' END
FROM generate_series(1, 30000) AS n, LATERAL (SELECT CAST(:now AS timestamptz) - n * interval '17 min' AS at) AS t
"""
PLANS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "everything": ({}, {"jobs_pkey"}),
    "a time": ({"start": NOW - timedelta(days=30)}, {"jobs_pkey"}),
    "a large project": ({"project_id": 1}, {"jobs_by_project", "jobs_pkey"}),
    "a project": ({"project_id": 0, "start": NOW - timedelta(days=30)}, {"jobs_by_project", "jobs_pkey"}),
    "failed": ({"statuses": (JobStatus.FAILED,)}, {"jobs_unsuccessful", "jobs_pkey"}),
    "a model": ({"model": "m"}, {"jobs_finished", "jobs_queued", "jobs_running", "jobs_pkey"}),
    "queued": ({"statuses": (JobStatus.QUEUED,)}, {"jobs_queued", "jobs_pkey"}),
    "running": ({"statuses": (JobStatus.IN_PROGRESS,)}, {"jobs_running", "jobs_pkey"}),
    "metadata": ({"metadata": {"a": "b"}, "end_user": "ann"}, {"jobs_pkey"}),
}


@pytest.mark.parametrize("name", PLANS)
async def test_a_search_reads_a_range_of_an_index(database: AsyncEngine, owner: Owner, name: str) -> None:
    """It neither sorts jobs, except the few of a shortcut, nor reads the table."""
    conditions, indexes = PLANS[name]
    other = await make_owner(database, "other")
    async with database.connect() as connection:
        parameters = {"project": owner.project_id, "other": other.project_id, "key": owner.key_id, "now": NOW}
        await connection.execute(text(ROWS), parameters)
        await connection.execute(text("ANALYZE jobs"))
    ids = {0: other.project_id, 1: owner.project_id}
    project = {"project_id": ids[conditions["project_id"]]} if "project_id" in conditions else {}
    filters = JobFilters(**{**conditions, **project})

    async def call(database: AsyncEngine) -> None:
        async with transaction(database) as connection:
            await connection.execute(*search_statement(filters, "job_zzz", 51, 20_000))

    plan = await explained(database, call, generic=False)
    scans = [line for line in plan if "Scan" in line and ("jobs" in line or "Seq" in line)]
    assert not [line for line in scans if "Seq Scan" in line], plan
    assert {index for index in indexes for line in scans if f" {index} " in line} == indexes, plan
    slice_ = next(number for number, line in enumerate(plan) if "WindowAgg" in line)
    below = [line for line in plan[slice_ + 1 :] if "->" in line and "Result" not in line]
    assert "Index" in below[0], plan
