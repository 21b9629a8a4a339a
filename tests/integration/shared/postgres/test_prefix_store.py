"""Whose prefixes are warmed, and which of them saved most tokens, from the rows of jobs."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.prompt_cache import cache_salt
from shared.domain.request import GenerateRequest, Message
from shared.postgres.job_store import JobStore
from shared.postgres.prefix_store import PrefixStore
from tests.support.database import make_owner


def ask(system: str, user: str = "x", **fields: Any) -> GenerateRequest:
    messages = [Message(role="system", content=system), Message(role="user", content=user)]
    return GenerateRequest(messages=messages, **fields)


@pytest.fixture
def prefixes(database: AsyncEngine) -> PrefixStore:
    return PrefixStore(database)


class Jobs:
    """Inserts jobs that have ended."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self._store = JobStore(database)

    async def ended(
        self,
        owner: Owner,
        request: GenerateRequest,
        cached: int,
        *,
        model: str = "m",
        ago_h: float = 0,
        attempt: int = 1,
    ) -> str:
        job, _ = await self._store.insert(NewJob(owner, model, 3, request))
        statement = text(
            "UPDATE jobs SET status = 'completed', attempt = :attempt,"
            " finished_at = clock_timestamp() - make_interval(secs => :ago_s),"
            " usage = jsonb_build_object('prompt_tokens', 100, 'cached_tokens', cast(:cached AS int)) WHERE id = :id"
        )
        async with self._database.begin() as connection:
            await connection.execute(
                statement, {"id": job.id, "cached": cached, "ago_s": ago_h * 3600, "attempt": attempt}
            )
        return job.id

    async def delete(self, job_id: str) -> None:
        async with self._database.begin() as connection:
            await connection.execute(
                text("UPDATE jobs SET deleted_at = now(), request = '{}' WHERE id = :id"), {"id": job_id}
            )


@pytest.fixture
def jobs(database: AsyncEngine) -> Jobs:
    return Jobs(database)


async def test_the_prefixes_that_saved_most(prefixes: PrefixStore, jobs: Jobs, owner: Owner) -> None:
    first = [await jobs.ended(owner, ask(50 * "long", str(n)), 64, ago_h=1 - n / 10) for n in range(4)]
    await jobs.ended(owner, ask(50 * "once"), 96)
    raw = [await jobs.ended(owner, GenerateRequest(prompt=f"{600 * 'a'} {n}"), 32) for n in range(2)]
    for n in range(3):
        await jobs.ended(owner, ask("nul \x00", str(n)), 16)
    await jobs.ended(owner, ask("cold"), 0)
    await jobs.ended(owner, ask("old"), 1024, ago_h=3)
    await jobs.ended(owner, ask("other model"), 1024, model="n")
    await jobs.ended(owner, ask("from the response cache"), 1024, attempt=0)
    await jobs.delete(await jobs.ended(owner, ask("deleted"), 1024))
    found = await prefixes.most_reused("m", hours=2, limit=10)
    assert [(item.tokens, item.saved) for item in found] == [(64, 256), (96, 96), (32, 64), (16, 48)]
    assert found[0].job_ids == tuple(reversed(first))[:3], "the newest ones"
    assert set(found[2].job_ids) == set(raw)
    assert {item.project_id for item in found} == {owner.project_id}
    assert [item.tokens for item in await prefixes.most_reused("m", hours=2, limit=2)] == [64, 96]


async def test_prefixes_of_different_projects_are_different(
    prefixes: PrefixStore, jobs: Jobs, owner: Owner, database: AsyncEngine
) -> None:
    other = await make_owner(database, "other")
    for project in (owner, other):
        for n in range(2):
            await jobs.ended(project, ask(50 * "the same", str(n)), 64)
    found = await prefixes.most_reused("m", hours=1, limit=10)
    assert sorted((item.project_id, item.saved) for item in found) == [(owner.project_id, 128), (other.project_id, 128)]
    (only,) = await prefixes.most_reused("m", hours=1, limit=10, project_ids=[other.project_id])
    assert only.project_id == other.project_id


async def test_requests_are_read_from_the_jobs_that_are_left(prefixes: PrefixStore, jobs: Jobs, owner: Owner) -> None:
    kept, gone = await jobs.ended(owner, ask("kept"), 64), await jobs.ended(owner, ask("gone"), 64)
    await jobs.delete(gone)
    assert await prefixes.requests([kept, gone]) == [ask("kept")]


async def test_the_projects_that_used_the_model_last(
    prefixes: PrefixStore, jobs: Jobs, owner: Owner, database: AsyncEngine
) -> None:
    names = ["idle", "recent", "latest", "revoked"]
    owners = {name: await make_owner(database, name) for name in names}
    await jobs.ended(owners["recent"], ask("x"), 0, ago_h=5)
    await jobs.ended(owners["latest"], ask("x"), 0)
    await jobs.ended(owners["revoked"], ask("x"), 0)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET revoked_at = now() WHERE name = 'revoked'"))
        salts = {row.name: row.salt for row in await connection.execute(text("SELECT name, salt FROM projects"))}
    found = await prefixes.projects("m", None, 3)
    assert [project.name for project in found[:2]] == ["latest", "recent"]
    assert len(found) == 3, "others fill the rest"
    assert found[0].salt == cache_salt(salts["latest"]), "as the claims of its jobs"
    assert [project.name for project in await prefixes.projects("m", ["idle", "unknown"], 3)] == ["idle"]
    assert (await prefixes.by_id([found[0].id]))[found[0].id] == found[0]
