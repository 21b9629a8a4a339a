"""What prompt caches saved, from the usage of a project's jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.cache.prompt_cache_report import PromptCacheReport
from shared.domain.ids import first_id, new_id
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore, NewJob
from tests.support.database import make_owner


async def ended(
    database: AsyncEngine, owner: Owner, model: str, usage: str, *, days_ago: int = 0, attempt: int = 1
) -> None:
    job, _ = await JobStore(database).insert(NewJob(owner, model, 3, GenerateRequest(prompt="x")))
    at = datetime.now(UTC) - timedelta(days=days_ago)
    earlier_id = first_id("job_", at)[:-16] + job.id[-16:]
    statement = text(
        "UPDATE jobs SET id = :new_id, created_at = :at, finished_at = :at, status = 'completed', attempt = :attempt,"
        " usage = cast(:usage AS jsonb) WHERE id = :id"
    )
    async with database.begin() as connection:
        parameters = {"id": job.id, "new_id": earlier_id, "at": at, "attempt": attempt, "usage": usage}
        await connection.execute(statement, parameters)


async def test_the_tokens_of_each_day_and_model(database: AsyncEngine, owner: Owner) -> None:
    other = await make_owner(database, "other")
    for project in (owner, owner, other):
        await ended(database, project, "a", '{"prompt_tokens": 100, "cached_tokens": 60, "completion_tokens": 5}')
    provider = '{"prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 5, "cache_write_tokens": 8}'
    await ended(database, owner, "b", provider, days_ago=1)
    await ended(database, owner, "b", provider, days_ago=9)
    await ended(database, owner, "a", '{"prompt_tokens": 100, "cached_tokens": 100}', attempt=0)
    found = await PromptCacheReport(database).of_project(owner.project_id, 7)
    assert [
        (use.model, use.jobs, use.prompt_tokens, use.cached_tokens, use.written_tokens, use.cached_share)
        for use in found
    ] == [("b", 1, 10, 0, 8, 0), ("a", 2, 200, 120, 0, 0.6)]
    assert found[0].day < found[1].day


def test_the_first_id_of_a_time_is_not_above_those_created_after_it() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    assert first_id("job_", before) <= new_id("job_")
    assert first_id("job_", datetime.now(UTC) + timedelta(seconds=5)) > new_id("job_")
