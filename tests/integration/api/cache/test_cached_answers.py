"""The response cache in the job's row: which ends store an answer, and which requests get it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs.retention_store import RetentionStore
from shared.domain.answer_options import CacheControl, RequestOptions
from shared.domain.decisions import CacheDecision, CacheOutcome, Decisions, RouteDecision
from shared.domain.errors import KeyReused
from shared.domain.events import EventType, parse_archive
from shared.domain.job import Attempt, Choice, Job, JobStatus, Usage
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.domain.response import ResponseFacts
from shared.domain.result import JobResult
from shared.postgres.job_store import Idempotency, JobStore, NewJob
from tests.conftest import Workers
from tests.support.database import make_owner
from tests.support.transcripts import output_of

KEY = b"k" * 32
REQUEST = GenerateRequest(messages=[Message(role="user", content="a\x00b")], sampling=Sampling(temperature=0))
OUTPUT = (Choice(0, "ok\x00🌊", "stop"),)
TIMINGS = '"timings":{"queued_ms":5,"ttft_ms":7,"total_ms":9}'
LOG = (
    '1 started {"attempt":1,"fingerprint":"fp_1"}\n2 delta {"index":0,"text":"ok \\"timings\\":{} 🌊"}\n'
    '3 completed {"usage":{"prompt_tokens":3,"cached_tokens":0,"completion_tokens":2},' + TIMINGS + "}"
)


def new_job(owner: Owner, **changes: Any) -> NewJob:
    decision = CacheDecision(outcome=CacheOutcome.MISS, ttl_s=60, revision="r")
    new = NewJob(owner=owner, model="m", priority=3, request=REQUEST, metadata={"a": "b"}, cache_key=KEY)
    return replace(new, **{"decisions": Decisions(cache=decision), **changes})


async def run(store: JobStore, workers: Workers, new: NewJob, **changes: Any) -> Job:
    """Run a job to its end, with this result."""
    # Without regard to an answer that has just been stored, or to an open job with the same key.
    anew = replace(new, options=RequestOptions(cache_control=CacheControl(no_cache=True)))
    job, _ = await store.coalesce(anew) or await store.insert(new)
    assert await workers("w").claim(job.id) is not None
    now = datetime.now(UTC)
    result = JobResult(
        status=JobStatus.COMPLETED,
        finished_at=now,
        output=output_of(*OUTPUT),
        usage=Usage(3, 0, 2),
        error=None,
        first_token_at=now,
        attempts=(Attempt(1, "w", now, now, 2, "completed", "fp_1"),),
        log=LOG.encode(),
        cacheable=True,
    )
    assert await workers("w").finish(job.id, 1, replace(result, **changes))
    return job


async def answer(store: JobStore, owner: Owner, **changes: Any) -> Job | None:
    found = await store.answer(new_job(owner, **changes))
    assert found is None or found[1]
    return None if found is None else found[0]


async def entries(database: AsyncEngine) -> list[Any]:
    async with database.connect() as connection:
        return list(await connection.execute(text("SELECT * FROM cached_answers")))


async def test_an_answered_job_is_born_completed_with_the_answer(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    source = await run(store, workers, new_job(owner))
    (entry,) = await entries(database)
    assert (entry.job_id, entry.model, entry.bytes) == (source.id, "m", len(output_of(*OUTPUT)) + len(LOG.encode()))

    route = RouteDecision(route="auto", rule="short")
    job = await answer(store, owner, decisions=Decisions(route=route), priority=5, metadata={"c": "d"})
    assert job is not None
    assert job.id != source.id
    assert (job.status, job.attempt, job.attempts, job.error) == (JobStatus.COMPLETED, 0, (), None)
    assert (job.priority, job.metadata, job.output, job.usage) == (5, {"c": "d"}, OUTPUT, Usage(3, 0, 2))
    assert job.timings() == {"queued_ms": 0, "ttft_ms": 0, "total_ms": 0}
    assert (job.decisions.route, job.fingerprint) == (route, "fp_1")
    cache = job.decisions.cache
    assert cache is not None
    assert (cache.outcome, cache.source, cache.age_s, cache.ttl_s) == ("HIT", source.id, 0, None)
    assert await store.get(job.id, owner.project_id) == job
    assert len(await entries(database)) == 1, "the copy is no new entry, which would never expire"


async def test_the_log_is_equal_but_for_the_times(store: JobStore, workers: Workers, owner: Owner) -> None:
    source = await run(store, workers, new_job(owner))
    job = await answer(store, owner)
    assert job is not None
    log, copied = await store.archived_log(source.id), await store.archived_log(job.id)
    assert log is not None
    assert copied == log.replace(TIMINGS, '"timings":{"queued_ms":0,"ttft_ms":0,"total_ms":0}')
    last = parse_archive(copied)[-1]
    assert (last.type, last.payload()["timings"]) == (EventType.COMPLETED, job.timings())


@pytest.mark.parametrize(
    "changes",
    [
        {"cacheable": False},
        {"status": JobStatus.INCOMPLETE, "cacheable": False},
    ],
    ids=["not cacheable", "incomplete"],
)
async def test_other_answers_are_not_stored(
    changes: dict[str, Any], store: JobStore, workers: Workers, owner: Owner
) -> None:
    await run(store, workers, new_job(owner), **changes)
    assert await answer(store, owner) is None


async def test_an_answer_without_a_ttl_or_a_key_is_not_stored(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await run(store, workers, new_job(owner, decisions=Decisions()))
    await run(store, workers, new_job(owner, cache_key=None))
    assert await entries(database) == []


async def test_only_the_same_project_model_and_key_find_it(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await run(store, workers, new_job(owner))
    stranger = await make_owner(database, "stranger")
    assert await answer(store, stranger) is None
    assert await answer(store, owner, model="m2") is None
    assert await answer(store, owner, cache_key=b"x" * 32) is None
    assert await answer(store, owner) is not None


async def test_an_old_answer_is_found_until_it_expires_or_is_too_old_for_the_request(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await run(store, workers, new_job(owner), finished_at=datetime.now(UTC) - timedelta(seconds=20))

    async def with_age(seconds: int) -> Job | None:
        return await answer(store, owner, options=RequestOptions(cache_control=CacheControl(max_age_s=seconds)))

    assert await with_age(19) is None
    job = await with_age(30)
    assert job is not None
    assert job.decisions.cache is not None
    assert job.decisions.cache.age_s == 20
    async with database.connect() as connection:
        await connection.execute(text("UPDATE cached_answers SET expires_at = now()"))
    assert await with_age(30) is None


@pytest.mark.parametrize("how", ["deleted", "removed"])
async def test_the_answer_is_deleted_with_its_job(
    how: str, store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    source = await run(store, workers, new_job(owner), finished_at=datetime.now(UTC) - timedelta(seconds=20))
    copy = await answer(store, owner)
    assert copy is not None
    if how == "deleted":
        assert await store.delete(source.id, owner.project_id)
    else:
        assert await RetentionStore(database).delete_ended(10, 10) == 1
    assert await entries(database) == []
    assert await answer(store, owner) is None
    assert await store.get(copy.id) == copy, "the other job keeps its own copy"


async def test_an_entry_whose_job_is_gone_is_a_miss(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    source = await run(store, workers, new_job(owner))
    async with database.connect() as connection:
        await connection.execute(text("DELETE FROM jobs"))
    assert await answer(store, owner) is None
    assert [entry.job_id for entry in await entries(database)] == [source.id]


async def test_a_later_answer_replaces_the_entry(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await run(store, workers, new_job(owner))
    second = await run(store, workers, new_job(owner))
    assert [entry.job_id for entry in await entries(database)] == [second.id]


async def test_jobs_with_one_key_that_end_together_are_one_entry(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await asyncio.gather(*(run(store, workers, new_job(owner)) for _ in range(4)))
    await asyncio.gather(*(run(store, workers, new_job(owner, cache_key=bytes([n]) * 32)) for n in range(4)))
    assert len({entry.key for entry in await entries(database)}) == 5


async def test_many_requests_get_the_answer_at_once(store: JobStore, workers: Workers, owner: Owner) -> None:
    await run(store, workers, new_job(owner))
    jobs = await asyncio.gather(*(answer(store, owner) for _ in range(50)))
    assert len({job.id for job in jobs if job is not None}) == 50


async def test_an_idempotency_key_is_used_by_the_answered_job(store: JobStore, workers: Workers, owner: Owner) -> None:
    idempotency = Idempotency("k", "sha")
    assert await store.answer(new_job(owner), idempotency) is None
    assert await store.find_created(owner, idempotency) is None, "a miss does not use the key"
    await run(store, workers, new_job(owner))
    found = await store.answer(new_job(owner), idempotency)
    assert found is not None
    assert found[1]
    again = await store.answer(new_job(owner, cache_key=b"x" * 32), idempotency)
    assert again == (found[0], False), "a retry gets the same job, whatever the cache has by now"
    assert await store.insert(new_job(owner), idempotency) == (found[0], False)
    with pytest.raises(KeyReused):
        await store.answer(new_job(owner), Idempotency("k", "other"))


async def test_a_response_is_inserted_with_its_answered_job_or_not_at_all(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    facts = ResponseFacts({}, [], stored=True)
    assert await answer(store, owner, response=facts) is None
    await run(store, workers, new_job(owner))
    plain, job = await asyncio.gather(answer(store, owner), answer(store, owner, response=facts))
    assert plain is not None
    assert job is not None
    async with database.connect() as connection:
        assert list((await connection.execute(text("SELECT job_id FROM responses"))).scalars()) == [job.id]
