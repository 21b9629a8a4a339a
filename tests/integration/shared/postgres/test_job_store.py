"""State changes of a job's row, each of which is one guarded statement."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.errors import ErrorCode, KeyReused
from shared.domain.job import Attempt, AttemptOutcome, Choice, Failure, Job, JobStatus, Usage, WorkerState
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.domain.result import JobResult
from shared.domain.suspects import Verdict
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Workers
from tests.support.database import make_owner
from tests.support.job_rows import jobs_of
from tests.support.transcripts import output_of

REQUEST = GenerateRequest(
    messages=[Message(role="user", content="a\x00b 🌊")], sampling=Sampling(max_tokens=4), priority=3
)


OUTPUT = (Choice(0, "ok\x00🌊", "stop"),)


def result(status: JobStatus = JobStatus.COMPLETED) -> JobResult:
    return JobResult(
        status=status,
        finished_at=datetime.now(UTC),
        output=output_of(*OUTPUT),
        usage=Usage(3, 0, 2),
        error=None,
        first_token_at=datetime.now(UTC),
        attempts=(Attempt(1, "w", datetime.now(UTC), datetime.now(UTC), 2, status.value),),
        log=b'1 delta {"index":0,"text":"ok"}\n2 completed {}',
    )


async def submit(store: JobStore, owner: Owner, *, model: str = "m", priority: int = 3, **others: Any) -> Job:
    job, created = await store.insert(
        NewJob(owner=owner, model=model, priority=priority, request=REQUEST, metadata={"a": "b"}, **others)
    )
    assert created
    return job


async def send_heartbeat(workers: Workers, worker: str, lease_s: float = 60) -> None:
    await workers(worker).heartbeat("m", slots=4, running=0, lease_s=lease_s)


async def test_an_inserted_job_is_read_back(store: JobStore, owner: Owner) -> None:
    job = await submit(store, owner)
    assert await store.get(job.id) == job
    assert job.request == REQUEST


async def test_a_job_of_another_project_is_not_found(store: JobStore, owner: Owner) -> None:
    job = await submit(store, owner)
    assert await store.get(job.id, owner.project_id + 1) is None
    assert await store.get("job_unknown", owner.project_id) is None


async def test_one_of_many_concurrent_claims_succeeds(store: JobStore, workers: Workers, owner: Owner) -> None:
    job = await submit(store, owner)
    claims = await asyncio.gather(*(workers(f"w{i}").claim(job.id) for i in range(8)))
    (claimed,) = [claim for claim in claims if claim is not None]
    assert (claimed.attempt, claimed.status) == (1, JobStatus.IN_PROGRESS)
    assert claimed.attempts[-1].worker == claimed.worker


async def test_a_claim_adds_the_salt_of_the_project_which_is_never_stored(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """A client cannot bring its own: neither a request nor its row has one."""
    other = await make_owner(database, "other")
    salts = []
    for project in (owner, owner, other):
        new = NewJob(project, "m", 3, GenerateRequest(prompt="x", cache_salt="mine", prompt_cache_key="k"))
        job, _ = await store.insert(new)
        stored = await store.get(job.id)
        assert stored is not None
        assert (stored.request.cache_salt, stored.request.prompt_cache_key) == (None, "k")
        claimed = await workers("w").claim(job.id)
        assert claimed is not None
        assert claimed.request.cache_salt is not None
        salts.append(claimed.request.cache_salt)
        await workers("w").requeue(job.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
        again = await workers("w").claim(job.id)
        assert again is not None
        assert again.request.cache_salt == claimed.request.cache_salt, "the next attempt finds the same prefixes"
    assert salts[0] == salts[1] != salts[2]
    assert all(re.fullmatch("[0-9a-f]{64}", salt) for salt in salts)


async def test_finish_requires_the_attempt_and_the_worker(store: JobStore, workers: Workers, owner: Owner) -> None:
    job = await submit(store, owner)
    await workers("w").claim(job.id)
    assert not await workers("w").finish(job.id, 2, result())
    assert not await workers("other").finish(job.id, 1, result())
    assert await workers("w").finish(job.id, 1, result())
    assert not await workers("w").finish(job.id, 1, result(JobStatus.FAILED))
    done = await store.get(job.id)
    assert done is not None
    assert (done.status, done.output, done.usage) == (JobStatus.COMPLETED, OUTPUT, Usage(3, 0, 2))
    assert [(item.number, item.worker, item.tokens, item.outcome) for item in done.attempts] == [
        (1, "w", 2, "completed")
    ]


async def test_an_error_message_may_contain_u_0000(store: JobStore, workers: Workers, owner: Owner) -> None:
    job = await submit(store, owner)
    await workers("w").claim(job.id)
    failed = replace(result(JobStatus.FAILED), error=Failure(ErrorCode.ENGINE_ERROR, "cannot read 'a\x00b'"))
    assert await workers("w").finish(job.id, 1, failed)
    done = await store.get(job.id)
    assert done is not None
    assert done.error == Failure("engine_error", "cannot read 'a\ufffdb'")


async def test_a_concurrent_cancel_does_not_prevent_finish(store: JobStore, workers: Workers, owner: Owner) -> None:
    for _ in range(10):
        job = await submit(store, owner)
        await workers("w").claim(job.id)
        finished, _ = await asyncio.gather(workers("w").finish(job.id, 1, result()), store.mark_cancelling(job.id))
        after = await store.get(job.id)
        assert finished
        assert after is not None
        assert after.status is JobStatus.COMPLETED
        assert await store.mark_cancelling(job.id) is None


async def test_requeued_jobs_are_claimed_again(store: JobStore, workers: Workers, owner: Owner) -> None:
    job = await submit(store, owner)
    await workers("w").claim(job.id)
    assert await workers("w").requeue(job.id, 1, tokens=5, outcome=AttemptOutcome.HANDED_BACK)
    again = await workers("v").claim(job.id)
    assert again is not None
    assert again.attempt == 2
    assert [item.outcome for item in again.attempts] == ["handed_back", None]
    assert not await workers("w").finish(job.id, 1, result()), "the first attempt is fenced"


async def test_jobs_of_a_dead_worker_are_requeued(
    store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner
) -> None:
    await send_heartbeat(workers, "dead", lease_s=-1)
    await send_heartbeat(workers, "alive")
    lost, running = await submit(store, owner), await submit(store, owner)
    await workers("dead").claim(lost.id)
    await workers("alive").claim(running.id)
    assert [hint.job_id for hint in await recovery_store.requeue_stalled(3)] == [lost.id]
    assert await recovery_store.requeue_stalled(3) == []
    assert not await workers("dead").finish(lost.id, 1, result())


async def test_the_number_of_worker_deaths_is_limited(
    store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner
) -> None:
    job = await submit(store, owner)
    for attempt in (1, 2):
        claimed = await workers(f"dead{attempt}").claim(job.id)
        assert claimed is not None
        assert len(await recovery_store.requeue_stalled(3)) == 1
    await workers("dead3").claim(job.id)
    assert await recovery_store.requeue_stalled(3) == []
    assert [item.id for item in await recovery_store.stalled_to_end(3)] == [job.id]


async def test_requeues_by_a_worker_are_not_deaths(
    store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner
) -> None:
    job = await submit(store, owner)
    for attempt in range(1, 6):
        await workers("w").claim(job.id)
        await workers("w").requeue(job.id, attempt, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
    await workers("dead").claim(job.id)
    assert [hint.job_id for hint in await recovery_store.requeue_stalled(3)] == [job.id]


async def test_a_heartbeat_returns_the_claims(store: JobStore, workers: Workers, owner: Owner) -> None:
    job = await submit(store, owner)
    await workers("w").claim(job.id)
    await store.mark_cancelling(job.id)
    (claim,) = (await workers("w").heartbeat("m", slots=4, running=1, lease_s=60)).claims
    assert (claim.job_id, claim.attempt, claim.status) == (job.id, 1, JobStatus.CANCELLING)
    assert await store.live_workers() == {"m": 1}
    await workers("w").heartbeat("m", slots=4, running=0, lease_s=60, state=WorkerState.RESTARTING)
    assert await store.live_workers() == {}, "alive but not ready"
    await workers("w").heartbeat("m", slots=4, running=0, lease_s=60, state=WorkerState.WARMING)
    assert (await store.live_workers(), await store.worker_states()) == ({}, {("m", "warming"): 1})
    await workers("w").heartbeat("m", slots=4, running=0, lease_s=60)
    assert await store.live_workers() == {"m": 1}
    await workers("w").end_lease()
    assert await store.live_workers() == {}


async def test_only_ended_jobs_are_deleted(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    job = await submit(store, owner)
    assert not await store.delete(job.id, owner.project_id)
    await workers("w").claim(job.id)
    await workers("w").finish(job.id, 1, result())
    assert not await store.delete(job.id, owner.project_id + 1)
    assert await store.delete(job.id, owner.project_id)
    assert await store.get(job.id) is None
    async with database.connect() as connection:
        row = (await connection.execute(text("SELECT request::text, output, log, usage FROM jobs"))).one()
    assert (row.request, row.output, row.log) == ("{}", None, None)
    assert row.usage["completion_tokens"] == 2


async def test_waiting_jobs_are_in_the_order_of_service(
    store: JobStore, recovery_store: RecoveryStore, owner: Owner
) -> None:
    late, urgent = await submit(store, owner), await submit(store, owner, priority=0)
    waiting = await recovery_store.waiting(["m"], limit=5, older_than_s=0, priorities=range(10))
    assert [hint.job_id for hint in waiting] == [urgent.id, late.id]
    assert await recovery_store.waiting(["m"], limit=5, older_than_s=60, priorities=range(10)) == []


@pytest.mark.parametrize("status", [status for status in JobStatus if status.terminal])
async def test_an_ended_job_never_changes(
    store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner, status: JobStatus
) -> None:
    job = await submit(store, owner)
    await workers("w").claim(job.id)
    assert await workers("w").finish(job.id, 1, result(status))
    before = await store.get(job.id)
    assert await workers("v").claim(job.id) is None
    assert await store.mark_cancelling(job.id) is None
    assert not await recovery_store.end_queued(job.id, 1, result(JobStatus.CANCELLED))
    assert not await recovery_store.end_lost(job.id, 1, result(JobStatus.FAILED))
    assert not await workers("w").requeue(job.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
    assert await recovery_store.requeue_stalled(3) == []
    assert await store.get(job.id) == before


class TestIdempotency:
    def new(self, owner: Owner) -> NewJob:
        return NewJob(owner=owner, model="m", priority=3, request=REQUEST)

    async def test_a_key_creates_one_job(self, store: JobStore, owner: Owner) -> None:
        idempotency = Idempotency("k", "digest")
        results = await asyncio.gather(*(store.insert(self.new(owner), idempotency) for _ in range(8)))
        assert len({job.id for job, _ in results}) == 1
        assert [created for _, created in results].count(True) == 1
        assert len(await jobs_of(store, owner.project_id)) == 1

    async def test_another_request_with_the_same_key_is_refused(self, store: JobStore, owner: Owner) -> None:
        await store.insert(self.new(owner), Idempotency("k", "digest"))
        with pytest.raises(KeyReused):
            await store.insert(self.new(owner), Idempotency("k", "other"))

    async def test_a_deleted_job_is_not_created_again(self, store: JobStore, workers: Workers, owner: Owner) -> None:
        job, _ = await store.insert(self.new(owner), Idempotency("k", "digest"))
        await workers("w").claim(job.id)
        await workers("w").finish(job.id, 1, result())
        await store.delete(job.id, owner.project_id)
        with pytest.raises(KeyReused, match="deleted"):
            await store.insert(self.new(owner), Idempotency("k", "digest"))

    async def test_old_keys_are_deleted(self, store: JobStore, recovery_store: RecoveryStore, owner: Owner) -> None:
        first, _ = await store.insert(self.new(owner), Idempotency("k", "digest"))
        await recovery_store.delete_idempotency_keys(60)
        assert (await store.insert(self.new(owner), Idempotency("k", "digest")))[0].id == first.id
        await recovery_store.delete_idempotency_keys(-1)
        assert (await store.insert(self.new(owner), Idempotency("k", "digest")))[1]


class TestDeadlines:
    async def test_an_overdue_job_is_not_claimed(
        self, store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner
    ) -> None:
        for job in (
            await submit(store, owner, start_within_s=-1.0),
            await submit(store, owner, finish_within_s=-1.0),
        ):
            assert await workers("w").claim(job.id) is None
            assert job.id in [item.id for item in await recovery_store.overdue()]

    async def test_a_job_within_its_deadlines_is_claimed(
        self, store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner
    ) -> None:
        job = await submit(store, owner, start_within_s=60.0, finish_within_s=90.0)
        assert await recovery_store.overdue() == []
        assert await workers("w").claim(job.id) is not None

    async def test_a_started_job_has_no_start_deadline(
        self, store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner, database: AsyncEngine
    ) -> None:
        job = await submit(store, owner, start_within_s=60.0)
        await workers("w").claim(job.id)
        await workers("w").requeue(job.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
        async with database.begin() as connection:
            await connection.execute(text("UPDATE jobs SET start_before = now() - interval '1 minute'"))
        assert await recovery_store.overdue() == []
        assert await workers("w").claim(job.id) is not None

    async def test_an_overdue_job_of_a_dead_worker_is_not_requeued(
        self, store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner, database: AsyncEngine
    ) -> None:
        job = await submit(store, owner, finish_within_s=60.0)
        await workers("dead").claim(job.id)
        async with database.begin() as connection:
            await connection.execute(text("UPDATE jobs SET finish_before = now() - interval '1 minute'"))
        assert await recovery_store.requeue_stalled(3) == []
        assert [item.id for item in await recovery_store.stalled_to_end(3)] == [job.id]


async def test_the_death_of_an_engine_counts_like_that_of_a_worker(
    store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner
) -> None:
    job = await submit(store, owner)
    for attempt in (1, 2):
        await workers("w").claim(job.id)
        await workers("w").requeue(
            job.id, attempt, tokens=0, outcome=AttemptOutcome.ENGINE_LOST, death=Verdict(charged=True, suspect=True)
        )
    claimed = await workers("dead").claim(job.id)
    assert claimed is not None
    assert claimed.deaths == 2
    assert [item.id for item in await recovery_store.stalled_to_end(3)] == [job.id]
