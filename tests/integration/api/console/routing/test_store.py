"""The sample of requests and the count of answers behind the page of routing and the cache."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.routing.store import SAMPLED, RoutingStore, parts_of
from shared.domain.owner import Owner
from tests.integration.shared.recovery.test_indexes import explained
from tests.support.database import make_owner
from tests.support.job_rows import add_job

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
STARTS = parts_of(NOW - timedelta(minutes=3), NOW, timedelta(minutes=1))
ROUTE = {"route": "auto", "rule": "law", "mode": "cost"}


async def test_what_was_decided_is_grouped_by_part(database: AsyncEngine, owner: Owner) -> None:
    usage = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 3}
    for _ in range(2):
        decisions = {"route": {**ROUTE, "tried": ["a"]}, "cache": {"outcome": "BYPASS", "reason": "no_store"}}
        await add_job(database, owner, "b", created_s_ago=30, now=NOW, decisions=decisions, usage=usage)
    moved = {"route": {**ROUTE, "tried": ["a"], "left": ["a"]}}
    await add_job(database, owner, "b", created_s_ago=90, now=NOW, decisions=moved)
    await add_job(database, owner, "b", created_s_ago=30, now=NOW, kind="summary")
    await add_job(database, owner, "b", created_s_ago=181, now=NOW)
    await add_job(database, owner, "c", created_s_ago=170, now=NOW)
    plain, second, first = await RoutingStore(database).decided(STARTS, NOW, None)
    assert (first.part, first.route, first.rule, first.mode, first.model) == (2, "auto", "law", "cost", "b")
    assert (first.skipped, first.moved, first.outcome, first.reason) == (True, False, "BYPASS", "no_store")
    assert (first.requests, first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (2, 20, 8, 6)
    assert (second.part, second.skipped, second.moved, second.requests) == (1, False, True, 1)
    assert (plain.part, plain.model, plain.route, plain.outcome, plain.requests) == (0, "c", None, None, 1)


async def test_a_part_has_at_most_its_newest_requests(database: AsyncEngine, owner: Owner) -> None:
    for number in range(SAMPLED + 5):
        await add_job(database, owner, "old" if number < 5 else "new", created_s_ago=50 - number / 2, now=NOW)
    found = await RoutingStore(database).decided(STARTS, NOW, None)
    assert [(one.model, one.requests) for one in found] == [("new", SAMPLED)]


async def test_a_project_sees_its_own(database: AsyncEngine, owner: Owner) -> None:
    other = await make_owner(database, "other")
    for one in (owner, owner, other):
        await add_job(database, one, created_s_ago=5, now=NOW)
    store = RoutingStore(database)
    assert [one.requests for one in await store.decided(STARTS, NOW, owner.project_id)] == [2]
    assert [one.requests for one in await store.decided(STARTS, NOW, None)] == [3]


async def test_answers_are_counted_by_model(database: AsyncEngine, owner: Owner) -> None:
    other = await make_owner(database, "other")
    insert = (
        "INSERT INTO cached_answers (key, project_id, model, job_id, bytes, hits, expires_at)"
        " VALUES (:key, :project, :model, 'job_1', 100, 2, now() + make_interval(secs => :left))"
    )
    async with database.begin() as connection:
        for number, (project, model, left) in enumerate(
            [(owner, "a", 60), (owner, "b", 60), (owner, "a", 60), (owner, "a", -1), (other, "a", 60)]
        ):
            values = {"key": bytes([number]), "project": project.project_id, "model": model, "left": left}
            await connection.execute(text(insert), values)
    store = RoutingStore(database)
    own = await store.answers(owner.project_id)
    assert [(one.model, one.entries, one.bytes, one.hits) for one in own] == [("a", 2, 200, 4), ("b", 1, 100, 2)]
    assert [(one.model, one.entries) for one in await store.answers(None)] == [("a", 3), ("b", 1)]


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("of_project", [False, True])
async def test_a_sample_reads_ranges_of_an_index(
    database: AsyncEngine, owner: Owner, generic: bool, of_project: bool
) -> None:
    rows = """
        INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, created_at, finished_at)
        SELECT 'job_' || lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || lpad(to_hex(n), 20, '0'),
            :project, :key, 'm', 'completed', 3, '{}', '{}', at, at
        FROM generate_series(1, 30000) AS n, LATERAL (SELECT CAST(:now AS timestamptz) - n * interval '1 s' AS at) AS t
    """
    async with database.connect() as connection:
        values = {"project": owner.project_id, "key": owner.key_id, "now": NOW}
        await connection.execute(text(rows), values)
        await connection.execute(text("ANALYZE jobs"))
    project_id = owner.project_id if of_project else None
    plan = await explained(
        database, lambda engine: RoutingStore(engine).decided(STARTS, NOW, project_id), generic=generic
    )
    scans = [line for line in plan if "Scan" in line and "jobs" in line]
    assert scans
    assert all("Index Scan" in line for line in scans), plan
    assert any("Limit" in line for line in plan)
