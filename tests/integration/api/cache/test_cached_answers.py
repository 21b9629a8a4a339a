"""The response cache in the job's row: which ends store an answer, and which requests get it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs.retention_store import RetentionStore
from api.streaming.stored_events import StoredEvents
from shared.domain.answer_options import CacheControl, RequestOptions
from shared.domain.decisions import CacheDecision, CacheOutcome, Decisions, RouteDecision
from shared.domain.errors import KeyReused
from shared.domain.events import EventType, parse_archive
from shared.domain.job import Attempt, Choice, Job, JobStatus, Usage
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.domain.response import ResponseFacts
from shared.domain.result import JobResult
from shared.postgres import engine, idempotency_keys, job_store, new_jobs
from shared.postgres.engine import transaction
from shared.postgres.group_commit import MAX_WEIGHT
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.support.database import make_owner
from tests.support.transcripts import output_of
from tests.support.waiting import eventually

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
    assert await workers("w").finish(job.id, 1, replace(completed(LOG), **changes))
    return job


def completed(log: str) -> JobResult:
    """The result of an attempt that has just completed."""
    now = datetime.now(UTC)
    return JobResult(
        status=JobStatus.COMPLETED,
        finished_at=now,
        output=output_of(*OUTPUT),
        usage=Usage(3, 0, 2),
        error=None,
        first_token_at=now,
        attempts=(Attempt(1, "w", now, now, 2, "completed", "fp_1"),),
        log=log.encode(),
        cacheable=True,
    )


async def answer(store: JobStore, owner: Owner, **changes: Any) -> Job | None:
    new = new_job(owner, **changes)
    size = await store.cached_bytes(new)
    assert size in (None, len(output_of(*OUTPUT)) + len(LOG.encode()))
    found = await store.answer(new)
    assert (found is None) == (size is None), "the lookup finds what the write finds"
    assert found is None or found[1]
    return None if found is None else found[0]


async def stored(database: AsyncEngine, job: Job) -> tuple[str | None, str | None]:
    """The output and the log in the job's own row."""
    query = text("SELECT output::text, log FROM jobs WHERE id = :id")
    async with database.connect() as connection:
        row = (await connection.execute(query, {"id": job.id})).one()
    return row.output, row.log


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


async def test_the_answer_is_in_one_row_and_its_log_is_equal_but_for_the_times(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    source = await run(store, workers, new_job(owner))
    assert await stored(database, source) == (output_of(*OUTPUT).decode(), LOG)
    log = LOG.replace(TIMINGS, '"timings":{"queued_ms":0,"ttft_ms":0,"total_ms":0}')
    for _ in range(2):
        job = await answer(store, owner)
        assert job is not None
        assert await stored(database, job) == (None, None)
        found = await store.result(job.id, owner.project_id)
        assert found is not None
        assert (found[1], job.output) == (OUTPUT, OUTPUT)
        assert await store.archived_log(job.id) == log
        assert await store.archived_last_seq(job.id) == 3
        page = await store.archive_page(job.id, after=2)
        assert page is not None
        assert parse_archive(page.text)[1:] == parse_archive(log)[2:]
        last = parse_archive(log)[-1]
        assert (last.type, last.payload()["timings"]) == (EventType.COMPLETED, job.timings())


@pytest.mark.parametrize("deltas", [1, 4000], ids=["one page", "several pages"])
async def test_a_stream_gets_the_first_page_of_the_log_with_its_job(
    store: JobStore, workers: Workers, owner: Owner, logs: EventLog, deltas: int
) -> None:
    first, *middle, last = LOG.split("\n")
    lines = [first, *middle * deltas, last]
    source = await run(store, workers, new_job(owner), log="\n".join(lines).encode())
    found = await store.answer(new_job(owner, options=RequestOptions(streams=True)))
    assert found is not None
    job, _ = found
    assert job.decisions.cache is not None
    assert job.decisions.cache.source == source.id
    stored_events = StoredEvents(logs, store, "api", lambda _: asyncio.sleep(0))
    page = stored_events.first_page(job.log_start)
    assert page is not None
    assert page == await stored_events.ended_page(job.id)
    assert page.ended == (deltas == 1)
    assert page.events

    plain = await store.answer(new_job(owner))
    assert plain is not None
    assert plain[0].log_start is None


async def test_other_answers_are_not_given(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """Those that are not cacheable are not stored. If an incomplete one was, it is not found."""
    await run(store, workers, new_job(owner), cacheable=False)
    assert await entries(database) == []
    await run(store, workers, new_job(owner), status=JobStatus.INCOMPLETE)
    assert len(await entries(database)) == 1
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
    """Its client and new requests get it no more. Those that got it before keep it, and nobody else can read it."""
    retention = RetentionStore(database)
    source = await run(store, workers, new_job(owner), finished_at=datetime.now(UTC) - timedelta(seconds=20))
    copy = await answer(store, owner)
    assert copy is not None
    log = await store.archived_log(copy.id)
    if how == "deleted":
        assert await store.delete(source.id, owner.project_id)
    else:
        assert await retention.delete_ended(10, 10) == 1
    assert await entries(database) == []
    assert await answer(store, owner) is None
    assert await store.get(source.id) is None
    assert await store.archived_log(source.id) == ""
    assert await store.get(copy.id) == copy, "the other job keeps its own copy"
    assert (log, await store.archived_log(copy.id)) == (log, log)
    assert await retention.release_answers(10) == 0

    if how == "deleted":
        unused = await run(store, workers, new_job(owner, cache_key=b"x" * 32))
        assert await store.delete(unused.id, owner.project_id)
        assert await stored(database, unused) == (None, None), "nobody else has its answer"
        assert await store.delete(copy.id, owner.project_id)
        assert await retention.release_answers(10) == 1
        assert await stored(database, source) == (None, None)
    else:
        async with database.connect() as connection:
            await connection.execute(text("UPDATE jobs SET finished_at = now() - interval '20 s'"))
        assert await retention.delete_ended(10, 10) == 1
        assert await retention.delete_ended(10, 10) == 1
        async with database.connect() as connection:
            assert list(await connection.execute(text("SELECT id FROM jobs"))) == []


async def test_a_job_that_is_deleted_while_another_gets_its_answer(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """The deletion waits until the other job is committed, and then leaves the answer to it."""
    source = await run(store, workers, new_job(owner))
    record = new_jobs.new_record("job_hit", new_job(owner))
    prepared, parameters = new_jobs.answer_statement([record])
    async with transaction(database) as connection:
        assert (await connection.execute(prepared.statement, parameters)).first() is not None
        deletion = asyncio.create_task(store.delete(source.id, owner.project_id))

        async def waits() -> bool:
            query = text(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            async with database.connect() as other:
                return (await other.execute(query)).first() is not None

        await eventually(waits, "the deletion waits")
    assert await deletion
    copy = await store.get("job_hit")
    assert copy is not None
    assert copy.output == OUTPUT
    assert await answer(store, owner) is None


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


async def test_many_requests_get_the_answer_at_once(
    store: JobStore, workers: Workers, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small answers are given in large batches, and large ones in small batches."""
    await run(store, workers, new_job(owner))
    batches: list[int] = []
    statement = new_jobs.answer_statement

    def recorded(new: Any) -> Any:
        batches.append(len(new))
        return statement(new)

    monkeypatch.setattr(job_store, "answer_statement", recorded)
    jobs = await asyncio.gather(*(store.answer(new_job(owner), answer_bytes=10) for _ in range(50)))
    assert len({found[0].id for found in jobs if found is not None}) == 50
    assert len(batches) <= 3
    batches.clear()
    await asyncio.gather(*(store.answer(new_job(owner), answer_bytes=MAX_WEIGHT) for _ in range(4)))
    assert batches == [1] * 4


async def test_an_answer_stored_after_a_slow_lookup_is_found(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """On a busy machine, seconds pass from the lookup to the insertion. A job that led then would run needlessly."""
    looked_up_at = time.monotonic() - 60
    await run(store, workers, new_job(owner))
    async with transaction(database) as connection:
        await connection.execute(text("UPDATE cached_answers SET created_at = now() - interval '30 s'"))
    assert await store.coalesce(new_job(owner), looked_up_at=looked_up_at) is None
    assert await answer(store, owner) is not None

    young_only = new_job(owner, options=RequestOptions(cache_control=CacheControl(max_age_s=10)))
    led = await store.coalesce(young_only, looked_up_at=looked_up_at)
    assert led is not None, "the lookup found none that is young enough"
    assert led[0].follows is None


async def test_a_process_that_hangs_holds_up_others_only_for_a_while(
    store: JobStore, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has claimed an idempotency key and inserted a leader, which others with the same cache key wait for."""
    monkeypatch.setattr(engine, "MAX_IDLE_MS", 100)
    prepared, parameters = new_jobs.LEAD.of([new_jobs.new_record("job_hanging", new_job(owner))])
    with contextlib.suppress(DBAPIError):  # the server closes the connection
        async with transaction(database) as hanging:
            await idempotency_keys.claim_key(hanging, owner, Idempotency("k", "sha"), "job_hanging")
            await hanging.execute(prepared.statement, parameters)
            found = await asyncio.wait_for(store.coalesce(new_job(owner)), 10)
            assert found is not None
            assert found[0].follows is None
    assert await store.find_created(owner, Idempotency("k", "sha")) is None


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
