"""The ledger's entries in PostgreSQL: how they are priced, and that each end of a job writes its own exactly once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import cast as sql_cast
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.decisions import ContextDecision, Decisions
from shared.domain.errors import ErrorCode
from shared.domain.job import Failure, Job, JobStatus
from shared.domain.json_bytes import kept_json
from shared.domain.ledger import Counts, Entry, Source
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import JobResult
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.ledger import OWNER_COLUMNS, charges, insert_entries
from shared.postgres.recovery_store import RecoveryStore
from shared.postgres.tables import JobRow
from tests.conftest import Workers
from tests.integration.api.cache.test_cached_answers import LOG, answer, completed, new_job
from tests.support.ledger import CACHED, INPUT, dollars, ledger, set_price

NOW = datetime.now(UTC)
COUNTS = Counts(7, 3, output_text=5)
COST = dollars(fresh=7, cached=3, output=5)


def entry(counts: Counts = COUNTS, **changes: Any) -> Entry:
    return replace(Entry(1, NOW, "m", "completed", counts, Source.ENGINE, final=True), **changes)


def result(*entries: Entry, **changes: Any) -> JobResult:
    return replace(completed(LOG), cacheable=False, entries=entries, **changes)


async def running(store: JobStore, workers: Workers, owner: Owner, **changes: Any) -> Job:
    job, _ = await store.insert(replace(NewJob(owner, "m", 3, GenerateRequest(prompt="x")), **changes))
    assert await workers("w").claim(job.id) is not None
    return job


async def ended(store: JobStore, workers: Workers, owner: Owner, *entries: Entry, **changes: Any) -> Job:
    job = await running(store, workers, owner, **changes)
    assert await workers("w").finish(job.id, 1, result(*entries))
    return job


async def test_an_entry_says_who_has_used_what(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    decisions = Decisions(context=ContextDecision(strategy="summarize", conversation="conv_1"))
    user = replace(owner, end_user="alice")
    job = await running(store, workers, user, requested_model="auto", decisions=decisions)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET batch_id = 'batch_1', batch_line = 1"))
    assert await workers("w").finish(job.id, 1, result(entry(engine="vllm")))
    (row,) = await ledger(database)
    assert (row.job_id, row.attempt, row.correction, row.ended_at) == (job.id, 1, 0, NOW)
    assert (row.project_id, row.key_id, row.end_user) == (owner.project_id, owner.key_id, "alice")
    assert (row.conversation, row.batch_id, row.kind) == ("conv_1", "batch_1", "generate")
    assert (row.requested_model, row.model, row.engine, row.service_tier) == ("auto", "m", "vllm", "default")
    assert (row.outcome, row.final, row.source, row.charged, row.saved) == ("completed", True, "engine", None, None)
    assert (row.input_fresh, row.input_cache_read, row.output_text, row.total_tokens) == (7, 3, 5, 15)
    assert row.cost == row.charge == COST
    assert row.written_by > 0


async def test_a_job_of_the_server_itself_has_its_kind(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await ended(store, workers, owner, entry(), kind="summary")
    (row,) = await ledger(database)
    assert (row.kind, row.requested_model) == ("summary", "m")


async def test_an_entry_of_a_worker_of_an_earlier_version_has_no_engine(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = entry(engine="vllm").stored()
    del stored["engine"]
    monkeypatch.setattr(Entry, "stored", lambda _: stored)
    await ended(store, workers, owner, entry())
    (row,) = await ledger(database)
    assert (row.model, row.engine, row.total_tokens) == ("m", None, 15)


async def test_the_charge_is_for_its_own_counts(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    lost = entry(Counts(10, output_text=4), final=False, charged=Counts(), outcome="worker_lost")
    await ended(
        store, workers, owner, lost, entry(attempt=2, charged=Counts(7, 3, output_text=9)),
        entry(attempt=3, charged=Counts()),
    )  # fmt: skip
    rows = await ledger(database)
    assert [row.cost for row in rows] == [dollars(fresh=10, output=4), COST, COST]
    assert [row.charge for row in rows] == [0, dollars(fresh=7, cached=3, output=9), 0]
    assert rows[1].charged == {"input_fresh": 7, "input_cache_read": 3, "output_text": 9}


async def test_our_own_numbers_are_kept_beside_those_of_a_provider(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    job = await ended(store, workers, owner, entry(source=Source.PROVIDER, counted={"input": 9000, "output": 5}))
    (row,) = await ledger(database, job.id)
    assert (row.input_fresh, row.counted, row.cost) == (7, {"input": 9000, "output": 5}, COST)
    other = await ended(store, workers, owner, entry())
    (row,) = await ledger(database, other.id)
    assert row.counted is None


async def amounts(store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, **changes: Any) -> Any:
    """The cost of a job with an entry that has these values."""
    job = await ended(store, workers, owner, entry(**changes))
    (row,) = await ledger(database, job.id)
    assert row.cost == row.charge
    return row.cost


async def test_a_part_without_a_price_leaves_the_amounts_unknown(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """A cache's rate has no substitute; reasoning costs as much as other output unless it has a rate of its own."""
    args = (store, workers, owner, database)
    assert await amounts(*args) is None, "no price at all"
    assert await amounts(*args, counts=Counts()) == 0, "nothing used, nothing to pay"
    await set_price(database)
    assert await amounts(*args, counts=Counts(1, input_cache_write_5m=1)) is None
    assert await amounts(*args, counts=Counts(1, input_cache_write_1h=1)) is None
    assert await amounts(*args, counts=Counts(1, output_reasoning=2)) == dollars(fresh=1, output=2)
    await set_price(database, "n", input_cache_read=None, output_reasoning=Decimal(40))
    assert await amounts(*args, model="n") is None
    assert await amounts(*args, model="n", counts=Counts(1, output_reasoning=1)) == Decimal("0.000042")


async def test_amounts_are_exact(store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine) -> None:
    rate = Decimal("0.1234567890123456789")
    await set_price(database, input_fresh=rate)
    cost = await amounts(store, workers, owner, database, counts=Counts(2_000_000_001))
    assert cost == rate * 2_000_000_001 / 1_000_000


async def test_a_price_is_that_of_the_time_when_the_attempt_ended(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    args = (store, workers, owner, database)
    for days, rate in ((-2, 1), (-1, 3), (1, 5)):
        await set_price(database, valid_from=NOW + timedelta(days=days), input_fresh=Decimal(rate))
    counts = Counts(1_000_000)
    assert await amounts(*args, counts=counts) == 3
    assert await amounts(*args, counts=counts, ended_at=NOW - timedelta(days=1)) == 3, "from this very moment on"
    assert await amounts(*args, counts=counts, ended_at=NOW - timedelta(days=1.5)) == 1
    assert await amounts(*args, counts=counts, ended_at=NOW - timedelta(days=3)) is None


async def test_a_price_is_that_of_the_tier_and_of_the_length_of_the_input(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    args = (store, workers, owner, database)
    await set_price(database)
    await set_price(database, from_input_tokens=100, input_fresh=2 * INPUT, input_cache_read=2 * CACHED)
    await set_price(database, tier="flex", input_fresh=INPUT / 2)
    assert await amounts(*args, counts=Counts(60, 39)) == dollars(fresh=60, cached=39)
    assert await amounts(*args, counts=Counts(60, 40)) == 2 * dollars(fresh=60, cached=40)
    assert await amounts(*args, counts=Counts(100), service_tier="flex") == dollars(fresh=100) / 2
    assert await amounts(*args, counts=Counts(100), service_tier="priority") is None, "a tier without a price"


async def test_a_long_context_is_priced_by_the_input_that_is_charged(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """Output that had to be processed again as input does not raise a price; a failed job is priced by its own."""
    await set_price(database)
    await set_price(database, from_input_tokens=100, input_fresh=2 * INPUT)
    again = entry(Counts(120, output_text=1), charged=Counts(90, output_text=31))
    failed = entry(Counts(120), attempt=2, charged=Counts())
    await ended(store, workers, owner, again, failed)
    first, second = await ledger(database)
    assert (first.cost, first.charge) == (dollars(fresh=120, output=1), dollars(fresh=90, output=31))
    assert (second.cost, second.charge) == (2 * dollars(fresh=120), 0)


async def test_a_later_price_replaces_all_lengths_of_an_earlier_one(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    await set_price(database, from_input_tokens=100, input_fresh=2 * INPUT)
    await set_price(database, valid_from=NOW - timedelta(days=1), input_fresh=3 * INPUT)
    assert await amounts(store, workers, owner, database, counts=Counts(100)) == 3 * dollars(fresh=100)


@pytest.mark.parametrize("wrong", ["total_tokens + 1", "0"])
async def test_a_total_that_is_not_the_sum_of_its_parts_is_refused(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, wrong: str
) -> None:
    await ended(store, workers, owner, entry())
    async with database.connect() as connection:
        with pytest.raises(IntegrityError, match="usage_events_total"):
            await connection.execute(text(f"UPDATE usage_events SET total_tokens = {wrong}"))  # noqa: S608


async def test_two_processes_that_end_a_job_at_once_write_its_entries_once(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, database_url: str
) -> None:
    """A worker that was taken for dead, and the sweeper that ends its jobs."""
    await set_price(database)
    other = connect(database_url)
    try:
        for _ in range(10):
            job = await running(store, workers, owner)
            failed = result(
                entry(outcome="worker_lost", charged=Counts()), status=JobStatus.FAILED,
                error=Failure(ErrorCode.ATTEMPTS_EXHAUSTED, "It died."),
            )  # fmt: skip
            recovery = RecoveryStore(other)

            async def end_lost(job: Job = job, failed: JobResult = failed, recovery: RecoveryStore = recovery) -> Any:
                revoked = await recovery.revoke_claim(job.id, 1)
                return await recovery.end_lost(job.id, 1, failed) if revoked else None

            ends = await asyncio.gather(workers("w").finish(job.id, 1, result(entry())), end_lost())
            assert sum(end is not None for end in ends) == 1
            (row,) = await ledger(database, job.id)
            stored = await store.get(job.id)
            assert stored is not None
            is_completed = stored.status is JobStatus.COMPLETED
            assert (row.outcome == "completed", row.charge == COST) == (is_completed, is_completed)
    finally:
        await other.dispose()


async def test_jobs_of_one_statement_have_their_own_entries(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    jobs = [await running(store, workers, owner) for _ in range(5)]
    worker = workers("w")
    counts = [Counts(number, output_text=1) for number in range(5)]
    ends = [worker.finish(job.id, 1, result(entry(one))) for job, one in zip(jobs, counts, strict=True)]
    await asyncio.gather(*ends)
    rows = await ledger(database)
    assert [(row.job_id, row.input_fresh, row.charge) for row in rows] == [
        (job.id, number, dollars(fresh=number, output=1)) for number, job in enumerate(jobs)
    ]


async def test_a_job_that_ends_without_an_attempt_has_no_entry(
    store: JobStore, recovery_store: RecoveryStore, owner: Owner, database: AsyncEngine
) -> None:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    cancelled = result(status=JobStatus.CANCELLED, attempts=())
    assert await recovery_store.end_queued(job.id, 0, cancelled) is not None
    assert await ledger(database) == []


async def test_an_answer_from_the_cache_costs_nothing_and_saves_what_its_source_was_charged(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    source = await running(store, workers, owner, **cached(owner))
    assert await workers("w").finish(source.id, 1, replace(result(entry(engine="vllm")), cacheable=True))
    job = await answer(store, replace(owner, end_user="bob"))
    assert job is not None
    _, row = await ledger(database)
    assert row.engine == "vllm"
    assert (row.job_id, row.attempt, row.outcome, row.final, row.end_user) == (job.id, 0, "answered", True, "bob")
    assert (row.total_tokens, row.cost, row.charge, row.saved, row.price_id) == (0, 0, 0, COST, None)
    assert (row.ended_at, row.model, row.requested_model) == (job.finished_at, "m", "m")


def cached(owner: Owner) -> dict[str, Any]:
    new = new_job(owner)
    return {"cache_key": new.cache_key, "decisions": new.decisions, "request": new.request}


async def test_the_entries_of_a_deleted_job_are_kept(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    job = await ended(store, workers, owner, entry())
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM jobs"))
    assert [row.job_id for row in await ledger(database)] == [job.id]


async def test_what_ended_jobs_are_charged_is_known_to_their_statement(
    store: JobStore, owner: Owner, database: AsyncEngine
) -> None:
    """For budgets: the charge of the final entry, 0 without an attempt, NULL if it has no price."""
    await set_price(database)
    entries = [
        [entry(attempt=1, final=False, charged=Counts()), entry(attempt=2)],
        [],
        [entry(model="unpriced")],
    ]
    jobs = [(await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x"))))[0] for _ in entries]
    async with database.begin() as connection:
        for job, of_job in zip(jobs, entries, strict=True):
            stored = kept_json([one.stored() for one in of_job]).decode()
            update = text("UPDATE jobs SET metadata = CAST(:entries AS json) WHERE id = :id")
            await connection.execute(update, {"entries": stored, "id": job.id})
        columns = (JobRow.id, JobRow.model, *OWNER_COLUMNS, JobRow.decisions)
        ending = select(*columns, sql_cast(JobRow.job_metadata, JSONB).label("entries")).cte("ended")
        found = charges(ending, insert_entries(ending))
        rows = (await connection.execute(select(found.c.job_id, found.c.charge))).all()
    assert {row.job_id: row.charge for row in rows} == dict(zip([job.id for job in jobs], [COST, 0, None], strict=True))
