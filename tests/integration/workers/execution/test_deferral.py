"""A job whose upstream is busy waits in the queue as if it had not run, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs.queue_estimates import QueueEstimates
from api.jobs.queue_store import QueueStore
from api.jobs.schemas import summary_view
from api.monitoring.queue_stats import QueueStatsStore
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.events import EventType, UpstreamState
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.integration.workers.execution.test_runner import WITHIN_S, Worker, working
from tests.support.metrics import api_metrics
from tests.support.steered_engine import text_of_tokens
from workers.engines.base import BusyReason, UpstreamBusy

LATER_S = 100.0
STATE = UpstreamState("resp_1")


@pytest.fixture
async def worker(workers: Workers, logs: EventLog) -> AsyncIterator[Worker]:
    async with working("w", workers("w"), logs) as worker:
        yield worker


@pytest.fixture
async def job(store: JobStore, owner: Owner) -> Job:
    return await submit(store, owner)


async def submit(
    store: JobStore, owner: Owner, *, start_within_s: float | None = None, finish_within_s: float | None = None
) -> Job:
    new = NewJob(
        owner,
        "m",
        3,
        GenerateRequest(prompt="x"),
        start_within_s=start_within_s,
        finish_within_s=finish_within_s,
    )
    return (await store.insert(new))[0]


def busy(retry_after_s: float | None = LATER_S, max_wait_s: float = 600) -> UpstreamBusy:
    return UpstreamBusy("HTTP 429", BusyReason.RATE_LIMIT, retry_after_s=retry_after_s, max_wait_s=max_wait_s)


async def refuse(worker: Worker, job: Job, error: UpstreamBusy) -> JobStatus | None:
    """Run the job until its upstream refuses it."""
    run, call = await worker.start(job)
    call.fail(error)
    return await asyncio.wait_for(run, WITHIN_S)


async def read(store: JobStore, job: Job) -> Job:
    found = await store.get(job.id)
    assert found is not None
    return found


async def make_due(database: AsyncEngine, *, for_s: float = 0) -> None:
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE jobs SET not_before = clock_timestamp() - make_interval(secs => :s)"), {"s": for_s}
        )


async def test_a_deferred_job_waits_as_if_it_had_not_run(worker: Worker, store: JobStore, job: Job) -> None:
    assert await refuse(worker, job, busy()) is None
    waiting = await read(store, job)
    assert (waiting.status, waiting.attempt, waiting.attempts, waiting.started_at) == (JobStatus.QUEUED, 1, (), None)
    assert waiting.not_before is not None
    assert waiting.deferred_since is not None
    assert LATER_S <= (waiting.not_before - waiting.deferred_since).total_seconds() <= 1.1 * LATER_S
    assert summary_view(waiting).not_before == waiting.not_before
    assert await worker.store.claim(job.id) is None, "before it is due"
    assert not worker.sent, "the message is sent when it is due"


async def test_a_due_job_is_sent_and_runs_as_its_first_attempt(
    worker: Worker, store: JobStore, logs: EventLog, job: Job
) -> None:
    """Its log has no output of the deferred attempt, and nothing is taken back."""
    sent: asyncio.Future[Hint] = asyncio.get_running_loop().create_future()
    worker.runner._context = replace(worker.runner._context, send=sent.set_result)
    assert await refuse(worker, job, busy(retry_after_s=None)) is None
    assert await asyncio.wait_for(sent, WITHIN_S) == Hint(job.id, "m", 3, front=True)
    run, call = await worker.start(job)
    await call.tokens(2)
    assert (call.attempt, call.prior) == (2, "")
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    done = await read(store, job)
    assert [(attempt.number, attempt.outcome) for attempt in done.attempts] == [(2, "completed")]
    assert (done.not_before, done.deferred_since) == (None, None)
    await worker.log_writer.drain(WITHIN_S)
    kinds = [event.type for event in await logs.read(job.id)]
    assert [kind for kind in kinds if kind is not EventType.DELTA] == [
        EventType.STARTED,
        EventType.STARTED,
        EventType.COMPLETED,
    ]


async def test_a_lost_log_of_deferred_attempts_takes_nothing_back(
    worker: Worker, logs: EventLog, database: AsyncEngine, job: Job
) -> None:
    await refuse(worker, job, busy())
    await worker.log_writer.drain(WITHIN_S)
    await logs.delete(job.id)
    await make_due(database)
    run, call = await worker.start(job)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    await worker.log_writer.drain(WITHIN_S)
    assert EventType.RESTARTED not in [event.type for event in await logs.read(job.id)]


async def test_the_wait_counts_from_the_first_deferral_to_the_first_token(
    worker: Worker, store: JobStore, database: AsyncEngine, job: Job
) -> None:
    await refuse(worker, job, busy())
    first = (await read(store, job)).deferred_since
    await make_due(database)
    await refuse(worker, job, busy())
    assert (await read(store, job)).deferred_since == first
    await make_due(database)
    run, call = await worker.start(job)
    await call.tokens(1)
    call.fail(busy())
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED, "after the first token"


async def test_an_answer_that_the_upstream_goes_on_generating_is_resumed_later(
    worker: Worker, store: JobStore, database: AsyncEngine, job: Job
) -> None:
    """With its output so far; the upstream's request is not cancelled."""
    await refuse(worker, job, busy())
    await make_due(database, for_s=500)
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(2)
    call.fail(busy(max_wait_s=LATER_S * 2))
    assert await asyncio.wait_for(run, WITHIN_S) is None
    waiting = await read(store, job)
    assert waiting.status is JobStatus.QUEUED
    assert [(one.number, one.tokens, one.outcome) for one in waiting.attempts] == [(2, 2, "deferred")]
    assert waiting.started_at is not None
    assert waiting.first_token_at is not None
    assert waiting.not_before is not None
    assert waiting.deferred_since is not None
    assert LATER_S <= (waiting.not_before - waiting.deferred_since).total_seconds() <= 1.1 * LATER_S
    assert await worker.store.claim(job.id) is None, "before it is due"
    await make_due(database)
    run, call = await worker.start(job)
    assert (call.upstream, call.prior) == (STATE, text_of_tokens(2))
    call.fail(busy())  # before a token: the wait counts from the last one
    assert await asyncio.wait_for(run, WITHIN_S) is None
    assert (await read(store, job)).deferred_since == waiting.deferred_since
    await make_due(database)
    run, call = await worker.start(job)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    done = await read(store, job)
    assert done.output[0].text == text_of_tokens(3)
    assert [(one.number, one.tokens) for one in done.attempts] == [(2, 2), (4, 1)]
    assert worker.engine.cancelled == []


@pytest.mark.parametrize("deadline", [True, False])
async def test_an_answer_that_cannot_wait_is_cancelled(
    worker: Worker, store: JobStore, owner: Owner, deadline: bool
) -> None:
    job = await submit(store, owner, finish_within_s=LATER_S / 2 if deadline else None)
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(1)
    call.fail(busy(max_wait_s=600 if deadline else LATER_S / 2))
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    assert worker.engine.cancelled == [STATE]


async def test_a_requeued_job_with_a_token_is_not_deferred_any_more(
    worker: Worker, store: JobStore, database: AsyncEngine, job: Job
) -> None:
    await refuse(worker, job, busy())
    await make_due(database)
    run, call = await worker.start(job)
    await call.tokens(1)
    await worker.runner.drain(0)
    await asyncio.wait_for(run, WITHIN_S)
    waiting = await read(store, job)
    assert (waiting.status, waiting.deferred_since, waiting.attempts[0].number) == (JobStatus.QUEUED, None, 2)


@pytest.mark.parametrize("error", [busy(max_wait_s=0), busy(retry_after_s=1e9)], ids=["no wait", "too long"])
async def test_a_job_that_cannot_wait_fails_with_the_upstreams_error(
    worker: Worker, store: JobStore, job: Job, error: UpstreamBusy
) -> None:
    assert await refuse(worker, job, error) is JobStatus.FAILED
    failed = await read(store, job)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("upstream_error", "HTTP 429")


async def test_a_deadline_that_would_pass_fails_the_job(worker: Worker, store: JobStore, owner: Owner) -> None:
    for job in (
        await submit(store, owner, finish_within_s=LATER_S / 2),
        await submit(store, owner, start_within_s=LATER_S / 2),
    ):
        assert await refuse(worker, job, busy()) is JobStatus.FAILED


async def test_deadlines_and_cancels_end_a_deferred_job(
    worker: Worker, store: JobStore, recovery_store: RecoveryStore, logs: EventLog, owner: Owner, database: AsyncEngine
) -> None:
    late = await submit(store, owner, start_within_s=2 * LATER_S)
    cancelled = await submit(store, owner)
    for job in (late, cancelled):
        assert await refuse(worker, job, busy()) is None
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE jobs SET start_before = now() - interval '1 s' WHERE start_before > now()")
        )
    terminator = JobTerminator(recovery_store, logs, 60, api_metrics())
    sweeper = Sweeper(
        recovery_store, terminator, worker.sent.append, api_metrics(), interval_s=1, lease_s=1, max_attempts=3
    )
    await sweeper.sweep()
    assert (await read(store, late)).status is JobStatus.EXPIRED, "it has not been started"
    assert await terminator.end(await read(store, cancelled), JobStatus.CANCELLED, CANCELLED)
    ended = await read(store, cancelled)
    assert (ended.status, ended.charge) == (JobStatus.CANCELLED, Decimal(0)), "it has cost nothing, which is known"


async def test_a_job_that_is_being_cancelled_is_not_deferred(worker: Worker, store: JobStore, job: Job) -> None:
    run, call = await worker.start(job)
    assert await store.mark_cancelling(job.id)
    call.fail(busy())
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.CANCELLED


async def test_redelivery_finds_a_deferred_job_once_its_worker_should_have_sent_it(
    worker: Worker, recovery_store: RecoveryStore, database: AsyncEngine, job: Job
) -> None:
    await refuse(worker, job, busy())
    last = "job_f"

    async def lost() -> list[int]:
        waiting = await recovery_store.waiting(["m"], limit=5, older_than_s=0, priorities=range(9))
        due = await recovery_store.waiting(["m"], limit=5, older_than_s=2, priorities=range(9))
        passed_over = await recovery_store.queued_before(["m"], 3, last, due_for_s=10, limit=5)
        return [len(waiting), len(due), len(passed_over)]

    async with database.begin() as connection:
        ago = "now() - interval '1 minute'"
        await connection.execute(text(f"UPDATE jobs SET created_at = {ago}, dispatched_at = {ago}"))  # noqa: S608
    assert await lost() == [0, 0, 0]
    await make_due(database)
    assert await lost() == [1, 0, 0]
    await make_due(database, for_s=5)
    assert await lost() == [1, 1, 0]
    await make_due(database, for_s=20)
    assert await lost() == [1, 1, 1]


async def test_estimates_promise_nothing_before_it_is_due(
    worker: Worker, store: JobStore, database: AsyncEngine, job: Job
) -> None:
    await worker.store.heartbeat("m", slots=4, running=0, lease_s=60)
    await refuse(worker, job, busy())
    queue_store = QueueStore(database)
    estimates = QueueEstimates(queue_store, Registry({"m": SimulatedModel(name="m", engine="simulated")}))
    position, eta_s = await estimates.waiting(await read(store, job))
    assert position == 0
    assert eta_s is not None
    assert 0.9 * LATER_S < eta_s <= 1.1 * LATER_S
    stats = await QueueStatsStore(database, api_metrics("m")).read()
    assert (stats.deferred["m"], stats.waiting["m", "3-5"]) == (1, 1)
    order = (await queue_store.orders(["m"]))["m"]
    assert order.not_before[job.id] - (await read(store, job)).not_before == timedelta(0)  # type: ignore[operator]
