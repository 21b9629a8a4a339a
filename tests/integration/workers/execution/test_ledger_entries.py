"""The entries that workers write: what the attempts of a job have used, over losses and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.events import UpstreamState
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.integration.workers.execution.test_after_loss import lose
from tests.integration.workers.execution.test_runner import WITHIN_S, Run, Worker, job, working
from tests.support.ledger import dollars, ledger, set_price
from tests.support.metrics import api_metrics
from tests.support.steered_engine import Call
from workers.engines.base import EngineError
from workers.execution.attempts.context import InterruptReason

__all__ = ["job"]

STATE = UpstreamState("resp_1")


@pytest.fixture
async def worker(workers: Workers, logs: EventLog, database: AsyncEngine) -> AsyncIterator[Worker]:
    await set_price(database)
    async with working("w", workers("w"), logs) as worker:
        yield worker


async def end(run: Run, call: Call) -> None:
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED


def tokens(rows: Sequence[Any]) -> list[tuple[int, int]]:
    return [(row.input_fresh, row.output_text) for row in rows]


async def test_a_completed_job(worker: Worker, job: Job, database: AsyncEngine) -> None:
    run, call = await worker.start(job)
    await call.tokens(4)
    await end(run, call)
    (row,) = await ledger(database)
    assert (row.input_fresh, row.output_text, row.source, row.outcome) == (3, 5, "engine", "completed")
    assert (row.model, row.engine) == ("m", "simulated")
    assert row.cost == row.charge == dollars(fresh=3, output=5)


async def test_a_worker_that_dies(
    worker: Worker, job: Job, workers: Workers, logs: EventLog, recovery_store: RecoveryStore, database: AsyncEngine
) -> None:
    """The tokens that reached the log are those of its attempt; the next one reads them as input."""
    run, call = await worker.start(job)
    await call.tokens(4)
    await worker.log_writer.drain(WITHIN_S)
    assert [hint.job_id for hint in await recovery_store.requeue_stalled(3)] == [job.id]
    async with working("v", workers("v"), logs) as other:
        other_run, other_call = await other.start(job)
        await other_call.tokens(1)
        await end(other_run, other_call)
    worker.runner.stop(job.id, InterruptReason.CLAIM_LOST, 1)
    await asyncio.wait_for(run, WITHIN_S)
    lost, final = await ledger(database)
    assert [(row.outcome, row.source) for row in (lost, final)] == [
        ("worker_lost", "estimate"),
        ("completed", "engine"),
    ]
    assert tokens([lost, final]) == [(3, 4), (3 + 4, 2)]
    assert (lost.charge, final.charge) == (0, dollars(fresh=3, output=6))


async def test_a_worker_that_dies_and_a_log_that_is_lost(
    worker: Worker, job: Job, workers: Workers, logs: EventLog, recovery_store: RecoveryStore, database: AsyncEngine
) -> None:
    run, call = await worker.start(job)
    await call.tokens(4)
    await worker.log_writer.drain(WITHIN_S)
    await recovery_store.requeue_stalled(3)
    await logs.delete(job.id)
    async with working("v", workers("v"), logs) as other:
        await end(*await other.start(job))
    worker.runner.stop(job.id, InterruptReason.CLAIM_LOST, 1)
    await asyncio.wait_for(run, WITHIN_S)
    lost, final = await ledger(database)
    assert (lost.source, final.source) == ("estimate", "engine")
    assert tokens([lost, final]) == [(3, 0), (3, 1)]


async def test_a_request_of_an_upstream_that_another_attempt_resumes_has_its_input_once(
    worker: Worker, job: Job, database: AsyncEngine
) -> None:
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(2)
    await lose(worker, run)
    worker.runner.resume()
    run, call = await worker.start(job)
    assert call.upstream == STATE
    await end(run, call)
    rows = await ledger(database)
    assert tokens(rows) == [(0, 2), (3, 1)]
    assert rows[-1].charge == sum(row.cost for row in rows) == dollars(fresh=3, output=3)


async def test_an_answer_that_starts_again_within_an_attempt(worker: Worker, job: Job, database: AsyncEngine) -> None:
    run, call = await worker.start(job)
    await call.tokens(4)
    call.restart()
    await call.tokens(1)
    await end(run, call)
    (row,) = await ledger(database)
    assert (row.output_text, row.cost) == (6, dollars(fresh=3, output=6))
    assert row.charge == dollars(fresh=3, output=2)


@pytest.mark.parametrize("count", [0, 2])
async def test_a_job_that_fails_is_not_charged(worker: Worker, job: Job, database: AsyncEngine, count: int) -> None:
    run, call = await worker.start(job)
    await call.tokens(count)
    call.fail(EngineError("It failed."))
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    (row,) = await ledger(database)
    assert (row.outcome, row.cost, row.charge) == ("failed", dollars(fresh=3, output=count), 0)


@pytest.mark.parametrize("count", [0, 2])
async def test_a_cancelled_job_is_charged_for_what_it_delivered(
    worker: Worker, job: Job, database: AsyncEngine, count: int
) -> None:
    run, call = await worker.start(job)
    await call.tokens(count)
    worker.runner.stop(job.id, InterruptReason.CANCELLED)
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.CANCELLED
    (row,) = await ledger(database)
    assert (row.outcome, row.charge) == ("cancelled", dollars(fresh=3, output=2) if count else 0)


async def test_an_upstreams_request_that_is_cut_is_charged_for_its_prompt(
    worker: Worker, store: JobStore, owner: Owner, database: AsyncEngine
) -> None:
    """Its usage would have come at the end. Otherwise clients could stay below their budgets by disconnecting."""
    worker.engine.prompt = None
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x" * 400)))
    run, call = await worker.start(job)
    await call.tokens(2)
    worker.runner.stop(job.id, InterruptReason.CANCELLED)
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.CANCELLED
    (row,) = await ledger(database)
    assert (row.input_fresh, row.output_text, row.source) == (101, 2, "estimate")
    assert row.charge == row.cost == dollars(fresh=101, output=2)


async def test_a_job_that_is_cancelled_between_two_attempts_is_charged_for_what_it_delivered(
    worker: Worker, job: Job, database: AsyncEngine, recovery_store: RecoveryStore, logs: EventLog
) -> None:
    run, call = await worker.start(job)
    await call.tokens(2)
    await lose(worker, run)
    terminator = JobTerminator(recovery_store, logs, 60, api_metrics(), engine_of={"m": "vllm"}.get)
    (queued,) = await recovery_store.queued_of("m", limit=1)
    assert await terminator.end(queued, JobStatus.CANCELLED, CANCELLED)
    (row,) = await ledger(database)
    assert row.engine == "vllm"
    assert (row.final, row.outcome, row.source) == (True, "handed_back", "estimate")
    assert row.charge == row.cost == dollars(fresh=3, output=2)
