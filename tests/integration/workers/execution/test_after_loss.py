"""Jobs of an upstream after their worker was lost: resumed, continued, restarted, or failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shared.domain.errors import ErrorCode
from shared.domain.events import EventType, UpstreamState, parse_archive
from shared.domain.job import Job, JobStatus, Usage
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.integration.workers.execution.test_runner import WITHIN_S, Worker, job, read, worker, working
from tests.support.steered_engine import text_of_tokens
from tests.support.waiting import eventually
from workers.engines.base import CannotContinue, EngineError
from workers.engines.resume import Resume
from workers.execution.attempts.context import InterruptReason

__all__ = ["job", "worker"]

STATE = UpstreamState("resp_1", {"route": "a"})


async def lose(worker: Worker, run: asyncio.Task[JobStatus | None]) -> None:
    """Return the worker's jobs to the queue with their output so far."""
    await worker.runner.requeue_all()
    assert await asyncio.wait_for(run, WITHIN_S) is None
    await worker.log_writer.drain(WITHIN_S)


async def test_the_upstreams_request_is_in_the_log_before_the_first_token(
    worker: Worker, workers: Workers, store: JobStore, logs: EventLog, job: Job
) -> None:
    run, call = await worker.start(job)
    call.accept(STATE)

    async def logged() -> bool:
        return any(item.type is EventType.UPSTREAM for item in await logs.read(job.id))

    await eventually(logged, "it is written without a token")
    await lose(worker, run)
    async with working("v", workers("v"), logs) as other:
        run, call = await other.start(job)
        assert (call.upstream, call.prior) == (STATE, "")
        await call.tokens(2)
        await lose(other, run)
        run, call = await other.start(job)
        assert (call.upstream, call.prior) == (STATE, text_of_tokens(2)), "it is still the same request"
        call.restart()
        await call.tokens(1)
        await lose(other, run)
        run, call = await other.start(job)
        assert (call.upstream, call.prior) == (None, text_of_tokens(1))
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
        await other.log_writer.drain(WITHIN_S)
    archived = await store.archive_page(job.id)
    assert archived is not None
    assert EventType.UPSTREAM not in {item.type for item in parse_archive(archived.text)}


async def two_choices(store: JobStore, owner: Owner) -> Job:
    """A job that the steered engine resumes as `several_choices` says."""
    created, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x", sampling=Sampling(n=2))))
    return created


@pytest.mark.parametrize("shown", [False, True])
async def test_an_answer_that_cannot_continue(
    worker: Worker, store: JobStore, logs: EventLog, owner: Owner, shown: bool
) -> None:
    """It starts again if no reader can have seen it; otherwise the job fails with the output so far."""
    worker.engine.several_choices = Resume.NONE
    job = await two_choices(store, owner)
    run, call = await worker.start(job)
    await call.tokens(2)
    await lose(worker, run)
    if shown:
        await logs.follow(job.id, "api", 0)
        assert await asyncio.wait_for(worker.runner.run(job.id), WITHIN_S) is JobStatus.FAILED
    else:
        run, call = await worker.start(job)
        assert call.prior == ""
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    await worker.log_writer.drain(WITHIN_S)
    done = await read(store, job)
    assert [choice.text for choice in done.output] == [text_of_tokens(2 if shown else 1)] * 2
    assert (EventType.RESTARTED in {item.type for item in await logs.read(job.id)}) is not shown
    if shown:
        assert done.error is not None
        assert done.error.code == ErrorCode.CANNOT_CONTINUE
        assert done.error.message.startswith("The worker was lost after 4 tokens had been sent; this model's upstream")
        assert [attempt.tokens for attempt in done.attempts] == [4, 0]


@pytest.mark.parametrize("shown", [False, True])
async def test_an_upstream_that_has_forgotten_the_request(
    worker: Worker, store: JobStore, logs: EventLog, job: Job, shown: bool
) -> None:
    """The engine finds out only when it tries to resume."""
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(2)
    await lose(worker, run)
    if shown:
        await logs.follow(job.id, "api", 0)
    run, call = await worker.start(job)
    assert call.prior == text_of_tokens(2)
    again = worker.engine.next_call(job.id)
    call.fail(CannotContinue())
    if shown:
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
        worker.engine.discard_next_call(job.id)
    else:
        call = await asyncio.wait_for(again, WITHIN_S)
        assert (call.upstream, call.prior) == (None, "")
        assert worker.engine.cancelled == [STATE]
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.engine.cancelled == [STATE], "whether the job has failed, or is sent again: before that"
    done = await read(store, job)
    assert done.output[0].text == text_of_tokens(2 if shown else 1)
    assert (None if done.error is None else done.error.code) == (ErrorCode.CANNOT_CONTINUE if shown else None)


@pytest.mark.parametrize("shown", [False, True])
async def test_an_upstream_that_forgets_the_request_while_it_answers(
    worker: Worker, store: JobStore, logs: EventLog, job: Job, shown: bool
) -> None:
    """No worker was lost, so the error is the engine's."""
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(2)
    if shown:
        await logs.follow(job.id, "api", 0)
    again = worker.engine.next_call(job.id)
    call.fail(CannotContinue("The upstream no longer has the request."))
    if shown:
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
        worker.engine.discard_next_call(job.id)
    else:
        call = await asyncio.wait_for(again, WITHIN_S)
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    done = await read(store, job)
    assert done.output[0].text == text_of_tokens(2 if shown else 1)
    if shown:
        assert done.error is not None
        assert (done.error.code, done.error.message) == (
            ErrorCode.CANNOT_CONTINUE,
            "The upstream no longer has the request.",
        )


async def test_an_engine_that_cannot_continue_cancels_the_request_of_the_last_attempt(
    worker: Worker, store: JobStore, owner: Owner
) -> None:
    """Two generations would be paid for."""
    worker.engine.several_choices = Resume.NONE
    job = await two_choices(store, owner)
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(2)
    await lose(worker, run)
    assert worker.engine.cancelled == []
    run, call = await worker.start(job)
    assert (call.upstream, worker.engine.cancelled) == (None, [STATE])
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED


async def test_a_lost_log_starts_the_answer_again(
    worker: Worker, store: JobStore, logs: EventLog, owner: Owner
) -> None:
    """Nothing is known of its output and its readers, which receive `restarted`."""
    worker.engine.several_choices = Resume.NONE
    job = await two_choices(store, owner)
    run, call = await worker.start(job)
    await call.tokens(2)
    await lose(worker, run)
    await logs.delete(job.id)
    run, call = await worker.start(job)

    async def restarted() -> bool:
        return EventType.RESTARTED in {item.type for item in await logs.read(job.id)}

    # Before the job ends: a log that is lost is not written again for a job that has ended, whose row has the events.
    await eventually(restarted, "the log says that the answer starts again")
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED


@pytest.mark.parametrize(
    ("reason", "cancels"),
    [
        (InterruptReason.CANCELLED, True),
        (InterruptReason.DEADLINE_EXCEEDED, True),
        (InterruptReason.REQUEUED, False),
        (InterruptReason.CLAIM_LOST, False),
    ],
)
async def test_the_upstream_is_told_of_the_end(
    worker: Worker, job: Job, reason: InterruptReason, cancels: bool
) -> None:
    """But not if the next attempt resumes its request."""
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(1)
    worker.runner.stop(job.id, reason)
    await asyncio.wait_for(run, WITHIN_S)
    assert worker.engine.cancelled == [STATE] * cancels


async def test_a_job_that_fails_cancels_its_request(worker: Worker, job: Job) -> None:
    """The upstream would go on generating an answer that nobody reads."""
    run, call = await worker.start(job)
    call.accept(STATE)
    await call.tokens(1)
    call.fail(EngineError("The upstream does not end its answer."))
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    assert worker.engine.cancelled == [STATE]


class Settlements:
    """A gate that lets everything pass, and keeps what attempts used."""

    model, holding, waiting, breaker, max_wait_s, longest_hold_s = "m", False, 0, None, 600.0, 0.0

    def __init__(self) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self.tokens: list[tuple[int, int]] = []

    async def enter(self, priority: int) -> Settlements:
        return self

    def claimed(self, request: GenerateRequest) -> None:
        pass

    def settle(self, usage: Usage, resumed_after: int) -> None:
        self.tokens.append((usage.completion_tokens, resumed_after))

    def close(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def resume(self) -> None:
        pass


@pytest.mark.parametrize(
    ("states", "settled"),
    [
        ([STATE, None], [(2, 0), (3, 2)]),  # the same request
        ([None, None], [(2, 0), (3, 0)]),  # the text so far is in the prompt of another one
        ([STATE, UpstreamState("resp_2")], [(2, 0), (3, 0)]),
    ],
    ids=["resumed", "continued", "sent again"],
)
async def test_what_counts_against_the_tokens_per_minute(
    worker: Worker, job: Job, states: list[UpstreamState | None], settled: list[tuple[int, int]]
) -> None:
    worker.engine.gate = gate = Settlements()
    for state in states:
        run, call = await worker.start(job)
        if state is not None:
            call.accept(state)
        if not gate.tokens:
            await call.tokens(2)
            await lose(worker, run)
            worker.runner.resume()
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert gate.tokens == settled
