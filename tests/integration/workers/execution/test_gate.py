"""Jobs of a relaying worker that are held back before their claim, on real servers and with a faulty upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.monitoring.readiness import ReadinessCheck
from shared.config.models.loader import ModelSpec, Registry
from shared.config.models.openai import OpenAIModel
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import EventLog
from shared.runtime.aio import cancel_and_wait
from tests.conftest import Workers
from tests.support.faulty_upstream import Answer, FaultyUpstream, error_answer, faulty_upstream
from tests.support.metrics import api_metrics, worker_metrics
from workers.engines.factory import make_engine
from workers.engines.upstream import breaker
from workers.engines.upstream.breaker import FAILURES
from workers.execution.attempts.context import AttemptContext
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.supervision.deferral_limit import WAITED_TOO_LONG, DeferralLimit

WITHIN_S = 20


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as upstream:
        yield upstream


def model(upstream: FaultyUpstream, **options: Any) -> OpenAIModel:
    options = {"base_url": upstream.url, "max_retries": 0, **options}
    return OpenAIModel.model_validate({"name": "m", "engine": "openai", "model": "theirs", "options": options})


@asynccontextmanager
async def working(
    workers: Workers, logs: EventLog, spec: ModelSpec, sent: list[Hint], name: str = "w"
) -> AsyncIterator[Runner]:
    metrics = worker_metrics("m")
    store, engine = workers(name), make_engine(spec, metrics)
    await engine.start()
    log_writer = LogWriter(logs, store.list_claims, late_s=60)
    context = AttemptContext(
        worker=name,
        engine=engine,
        store=store,
        logs=logs,
        log_writer=log_writer,
        log_ttl_s=60,
        max_attempts=3,
        send=sent.append,
        on_engine_death=lambda: None,
        metrics=metrics,
    )
    flushing = asyncio.create_task(log_writer.run())
    try:
        yield Runner(context, SlotPool(spec.slots, yields=False))
    finally:
        await cancel_and_wait(flushing, again_s=0.1)  # the first cancellation is often lost
        await engine.stop()


async def submit(store: JobStore, owner: Owner, count: int, priority: int = 3) -> list[Job]:
    new = NewJob(owner, "m", priority, GenerateRequest(prompt="x"))
    return [(await store.insert(new))[0] for _ in range(count)]


async def status(store: JobStore, job: Job) -> JobStatus:
    found = await store.get(job.id)
    assert found is not None
    return found.status


async def run_all(runner: Runner, jobs: list[Job]) -> list[JobStatus | None]:
    runs = [runner.run(job.id, job.priority) for job in jobs]
    return await asyncio.wait_for(asyncio.gather(*runs), WITHIN_S)


def exhaust(runner: Runner, requests: float) -> None:
    gate = runner.gate
    assert gate is not None
    gate.requests.take(requests)  # type: ignore[attr-defined]


async def test_a_job_that_a_limit_holds_back_can_be_cancelled_or_run_elsewhere(
    workers: Workers,
    store: JobStore,
    recovery_store: RecoveryStore,
    logs: EventLog,
    owner: Owner,
    upstream: FaultyUpstream,
) -> None:
    spec = model(upstream, requests_per_minute=1)
    async with working(workers, logs, spec, []) as runner, working(workers, logs, spec, [], "v") as other:
        cancelled, elsewhere, here = jobs = await submit(store, owner, 3)
        exhaust(runner, 1)
        runs = [asyncio.create_task(runner.run(job.id, 3)) for job in jobs]
        await asyncio.sleep(0)
        assert runner.waiting == {job.id for job in jobs}, "redelivery does not take their messages for lost ones"
        assert runner.holding
        assert {await status(store, job) for job in jobs} == {JobStatus.QUEUED}
        found = await store.get(cancelled.id)
        assert found is not None
        assert await JobTerminator(recovery_store, logs, 60, api_metrics()).end(found, JobStatus.CANCELLED, CANCELLED)
        assert await run_all(other, [elsewhere]) == [JobStatus.COMPLETED]
        runner.gate.passed(claimed=False, probe=False)  # type: ignore[union-attr]  # one request may be sent
        assert await asyncio.wait_for(asyncio.gather(*runs), WITHIN_S) == [None, None, JobStatus.COMPLETED]
        assert await status(store, here) is JobStatus.COMPLETED
        assert not runner.holding


async def test_the_most_urgent_job_is_next(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner, upstream: FaultyUpstream
) -> None:
    async with working(workers, logs, model(upstream, requests_per_minute=300), []) as runner:
        jobs = [(await submit(store, owner, 1, priority))[0] for priority in (9, 5, 0)]
        exhaust(runner, 30)
        assert await run_all(runner, jobs) == [JobStatus.COMPLETED] * 3
        claims = [(found.started_at, found.priority) for job in jobs if (found := await store.get(job.id))]
        assert [priority for _, priority in sorted(claims)] == [0, 5, 9]


async def test_a_drain_sends_the_held_messages_back(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner, upstream: FaultyUpstream
) -> None:
    sent: list[Hint] = []
    async with working(workers, logs, model(upstream, requests_per_minute=1), sent) as runner:
        (job,) = await submit(store, owner, 1)
        exhaust(runner, 1)
        run = asyncio.create_task(runner.run(job.id, 3))
        await asyncio.sleep(0)
        await runner.drain(WITHIN_S)
        assert await asyncio.wait_for(run, WITHIN_S) is None
        assert sent == [Hint(job.id, "m", 3, front=True)]


async def test_the_breaker_keeps_jobs_queued_until_a_probe_succeeds(
    workers: Workers,
    store: JobStore,
    logs: EventLog,
    owner: Owner,
    redis: Redis,
    upstream: FaultyUpstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker, "OPEN_S", (600.0, 600.0))
    sent: list[Hint] = []
    spec = model(upstream)
    upstream.default = error_answer(503)
    async with working(workers, logs, spec, sent) as runner:
        failing = await submit(store, owner, FAILURES)
        waiting = await submit(store, owner, 2)
        assert await run_all(runner, failing) == [None] * FAILURES
        assert runner.holding
        requests = len(upstream.seen)
        assert await run_all(runner, waiting) == [None, None]
        assert len(upstream.seen) == requests, "no claim, no request"
        assert sent[-2:] == [Hint(job.id, "m", 3, front=True) for job in waiting]
        assert {await status(store, job) for job in waiting} == {JobStatus.QUEUED}
        assert runner.gate is not None
        assert runner.gate.breaker is not None
        readiness = ReadinessCheck(store, redis, Registry({"m": spec}))
        for opened in (runner.gate.breaker, None):
            await workers("w").heartbeat("m", slots=1, running=0, lease_s=60, breaker=opened)
            state = (await readiness.run())["model m"]
            assert readiness.is_ready(state)
            if opened is not None:
                assert state == f"ok (upstream breaker open since {opened.since:%Y-%m-%dT%H:%M:%SZ}: HTTP 503)"
            else:
                assert state == "ok"

        runner.gate._breaker._half_open()  # type: ignore[attr-defined]  # as its timer does
        assert not runner.holding
        upstream.default = Answer(3)
        assert await run_all(runner, waiting) == [JobStatus.COMPLETED] * 2
        assert runner.gate.breaker is None


async def test_deferred_jobs_wait_for_the_breaker_as_long_as_they_may(
    workers: Workers,
    store: JobStore,
    database: AsyncEngine,
    logs: EventLog,
    owner: Owner,
    upstream: FaultyUpstream,
) -> None:
    upstream.default = error_answer(503)
    recovery = RecoveryStore(database)
    terminator = JobTerminator(recovery, logs, 60, api_metrics("m"))
    async with working(workers, logs, model(upstream, max_wait_s=60), []) as runner:
        deferred = await submit(store, owner, FAILURES)
        new = await submit(store, owner, 1)
        await run_all(runner, deferred)
        limit = DeferralLimit(runner, recovery, terminator)
        await limit.end_overdue()
        assert {await status(store, job) for job in deferred} == {JobStatus.QUEUED}
        async with database.begin() as connection:
            await connection.execute(text("UPDATE jobs SET deferred_since = deferred_since - interval '1 minute'"))
        await limit.end_overdue()
        for job in deferred:
            ended = await store.get(job.id)
            assert ended is not None
            assert (ended.status, ended.error) == (JobStatus.FAILED, WAITED_TOO_LONG)
        assert {await status(store, job) for job in new} == {JobStatus.QUEUED}, "it has not failed yet"


async def test_refused_keys_open_the_breaker(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner, upstream: FaultyUpstream
) -> None:
    upstream.default = error_answer(401)
    async with working(workers, logs, model(upstream), []) as runner:
        assert await run_all(runner, await submit(store, owner, FAILURES)) == [JobStatus.FAILED] * FAILURES
        assert runner.gate is not None
        assert runner.gate.breaker is not None
        assert runner.gate.breaker.reason == "the key was refused (HTTP 401)"


async def test_an_exhausted_key_opens_the_breaker(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner, upstream: FaultyUpstream
) -> None:
    """As a rate limit it would be tried again and again, with each of the queued jobs."""
    body = '{"error": {"message": "You exceeded your quota", "type": "insufficient_quota", "code": null}}'
    upstream.default = Answer(status=429, body=body)
    async with working(workers, logs, model(upstream, max_retries=3), []) as runner:
        assert await run_all(runner, await submit(store, owner, FAILURES)) == [None] * FAILURES, "deferred"
        assert len(upstream.seen) == FAILURES, "not repeated in place"
        assert runner.gate is not None
        assert runner.gate.breaker is not None
        assert runner.gate.breaker.reason == "the account of the key has no credit (HTTP 429)"


async def test_usage_counts_against_the_tokens_per_minute(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner, upstream: FaultyUpstream
) -> None:
    async with working(workers, logs, model(upstream, tokens_per_minute=1000), []) as runner:
        assert await run_all(runner, await submit(store, owner, 1)) == [JobStatus.COMPLETED]
        tokens = runner.gate.tokens  # type: ignore[union-attr]
        assert tokens.wait_s(0) == pytest.approx((160 - 100) / 1000 * 60, abs=1), "160 tokens, of which 100 are a burst"
