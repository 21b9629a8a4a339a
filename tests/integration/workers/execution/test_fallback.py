"""A job of a route moves to another model if its own cannot serve it and nobody has received output."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.admin.fleet.store import FleetStore
from api.jobs.removed_models import RemovedModels
from api.openai.chunks import DONE, frames
from api.openai.completions import CHAT
from api.streaming.hub import StreamHub
from shared.config.models.loader import Registry
from shared.domain.conversation import Conversation
from shared.domain.decisions import CacheDecision, Decisions, RouteDecision
from shared.domain.errors import ContentRefused, ContextExceeded, InvalidRequest
from shared.domain.events import Event, EventType, UpstreamState, parse_archive, seq_before
from shared.domain.fallback import FallbackReason
from shared.domain.job import AttemptOutcome, Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.opaque import OpaquePart
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.postgres.claim_store import ClaimStore
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery import fallbacks
from shared.recovery.fallbacks import Fallbacks
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis.conversation_models import ConversationModels, KnownModel
from shared.redis.event_log import EventLog
from shared.runtime.aio import cancel_and_wait
from tests.integration.workers.execution.test_runner import WITHIN_S, Worker, working
from tests.support.metrics import api_metrics
from tests.support.steered_engine import Call, text_of_tokens
from workers.engines.base import BusyReason, EngineError, UpstreamBusy, UpstreamError
from workers.execution.attempts.context import InterruptReason

STATE = UpstreamState("resp_1")
MAX_ATTEMPTS = 3


class Models:
    """A worker for each of the models a, b and c, and what recovers their jobs."""

    def __init__(
        self,
        store: JobStore,
        recovery: RecoveryStore,
        logs: EventLog,
        conversations: ConversationModels,
        workers: dict[str, Worker],
        owner: Owner,
    ) -> None:
        self.store = store
        self.recovery = recovery
        self.logs = logs
        self.owner = owner
        self.workers = workers
        self.metrics = api_metrics("a", "b", "c")
        self.sent: list[Hint] = []
        self.conversations = conversations
        self.fallbacks = Fallbacks(recovery, logs, conversations, self.sent.append, self.metrics)
        self.terminator = JobTerminator(recovery, logs, 60, self.metrics, fallbacks=self.fallbacks)
        self.sweeper = Sweeper(
            recovery,
            self.terminator,
            self.sent.append,
            self.metrics,
            interval_s=1,
            lease_s=60,
            max_attempts=MAX_ATTEMPTS,
            fallbacks=self.fallbacks,
        )

    async def submit(
        self,
        *fallbacks: str,
        request: GenerateRequest | None = None,
        start_within_s: float | None = None,
        delay_s: float | None = None,
        priority: int = 3,
    ) -> Job:
        new = NewJob(
            self.owner,
            "a",
            priority,
            request or GenerateRequest(prompt="x"),
            start_within_s=start_within_s,
            delay_s=delay_s,
            requested_model="auto",
            decisions=Decisions(
                route=RouteDecision(route="auto", rule="short", fallbacks=fallbacks, conversation="conv"),
                cache=CacheDecision(outcome="MISS", ttl_s=60),
            ),
            cache_key=b"key",
        )
        return (await self.store.insert(new))[0]

    async def read(self, job: Job) -> Job:
        found = await self.store.get(job.id)
        assert found is not None
        return found

    async def start(self, model: str, job: Job) -> tuple[asyncio.Task[JobStatus | None], Call]:
        return await self.workers[model].start(job)

    async def fail(self, model: str, job: Job, error: Exception) -> JobStatus | None:
        """Run the job until it fails with this error before a token."""
        run, call = await self.start(model, job)
        call.fail(error)
        return await asyncio.wait_for(run, WITHIN_S)

    async def complete(self, model: str, job: Job, tokens: int = 2) -> Job:
        run, call = await self.start(model, job)
        await call.tokens(tokens)
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
        return await self.read(job)

    async def serve(self, *models: str) -> None:
        """Give these models' workers a lease, and take it from the others."""
        for model, worker in self.workers.items():
            if model in models:
                await worker.store.heartbeat(model, slots=4, running=0, lease_s=60)
            else:
                await worker.store.end_lease()

    async def events(self, job: Job) -> list[tuple[EventType, str | None]]:
        """The types of the log's events but deltas, and the model of each start."""
        for worker in self.workers.values():
            await worker.log_writer.drain(WITHIN_S)
        events = await self.logs.read(job.id)
        return [(item.type, item.payload().get("model")) for item in events if item.type is not EventType.DELTA]


@pytest.fixture
async def models(
    store: JobStore, recovery_store: RecoveryStore, logs: EventLog, redis: Redis, database: AsyncEngine, owner: Owner
) -> AsyncIterator[Models]:
    conversations = ConversationModels(redis)
    async with AsyncExitStack() as stack:
        workers = {
            model: await stack.enter_async_context(
                working(f"{model}-1", ClaimStore(database, f"{model}-1", model), logs)
            )
            for model in "abc"
        }
        for worker in workers.values():
            worker.runner._context = replace(worker.runner._context, conversations=conversations)
        models = Models(store, recovery_store, logs, conversations, workers, owner)
        await models.serve("a", "b", "c")
        yield models


def history(job: Job) -> list[tuple[str | None, str | None, str | None]]:
    return [(attempt.model, attempt.outcome, attempt.error) for attempt in job.attempts]


def busy(max_wait_s: float = 600) -> UpstreamBusy:
    return UpstreamBusy("HTTP 503", BusyReason.SERVER_ERROR, retry_after_s=100, max_wait_s=max_wait_s)


async def execute(database: AsyncEngine, sql: str) -> Sequence[Any]:
    async with database.begin() as connection:
        result = await connection.execute(text(sql))
        return result.fetchall() if result.returns_rows else []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UpstreamError("HTTP 404"), FallbackReason.UPSTREAM_ERROR),
        (busy(), FallbackReason.UPSTREAM_BUSY),
        (EngineError("it failed"), FallbackReason.ENGINE_ERROR),
        (RuntimeError("a bug"), FallbackReason.ENGINE_ERROR),
        (ContextExceeded("too long", param="prompt"), FallbackReason.CONTEXT_LENGTH),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
async def test_a_job_that_fails_before_a_token_moves_to_the_next_model(
    models: Models, database: AsyncEngine, error: Exception, reason: FallbackReason
) -> None:
    job = await models.submit("b", "c")
    assert await models.fail("a", job, error) is None
    moved = await models.read(job)
    assert (moved.model, moved.requested_model, moved.status) == ("b", "auto", JobStatus.QUEUED)
    assert moved.decisions.route == RouteDecision(
        route="auto", rule="short", tried=("a",), fallbacks=("c",), left=("a",), conversation="conv"
    )
    assert moved.decisions.cache is not None
    assert (moved.not_before, moved.deferred_since, moved.worker) == (None, None, None)
    assert history(moved) == [("a", AttemptOutcome.REROUTED, reason)]
    assert models.workers["a"].sent == [Hint(job.id, "b", 0, front=True)]
    assert await models.workers["a"].store.claim(job.id) is None, "it is not a's job any more"
    assert (await execute(database, "SELECT cache_key FROM jobs"))[0] == (None,), "b's answer is not a's"

    done = await models.complete("b", job)
    assert (done.model, done.output[0].text) == ("b", text_of_tokens(3))
    assert history(done) == [("a", AttemptOutcome.REROUTED, reason), ("b", AttemptOutcome.COMPLETED, None)]
    assert await models.events(job) == [
        (EventType.STARTED, "a"),
        (EventType.STARTED, "b"),
        (EventType.COMPLETED, None),
    ]


@pytest.mark.parametrize("tokens", [0, 1])
async def test_readers_see_one_answer_of_one_model(models: Models, redis: Redis, tokens: int) -> None:
    """The next model answers in the same stream; after the first token, the stream ends with the error instead."""
    hub = StreamHub(redis, models.logs, models.store, models.metrics, resync_s=0.2)
    receiving = asyncio.create_task(hub.run())
    job = await models.submit("b", request=GenerateRequest(messages=[Message(role="user", content="x")]))
    sent: list[dict[str, Any]] = []

    async def read_stream() -> None:
        async for frame in frames(CHAT, [job], [hub.follow(job.id, new=True)]):
            sent.extend(orjson.loads(part[6:]) for part in frame.split(b"\n\n") if part and part != DONE.strip())

    reading = asyncio.create_task(read_stream())
    try:
        run, call = await models.start("a", job)
        await call.tokens(tokens)
        call.fail(UpstreamError("down"))
        assert await asyncio.wait_for(run, WITHIN_S) is (JobStatus.FAILED if tokens else None)
        if not tokens:
            await models.complete("b", job)
        await asyncio.wait_for(reading, WITHIN_S)
    finally:
        await cancel_and_wait(receiving)
    if tokens:
        assert [chunk.get("model") for chunk in sent] == ["a", "a", None]
        assert sent[-1]["error"]["code"] == "upstream_error"
        return
    assert {chunk["model"] for chunk in sent} == {"b"}
    assert sent[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in sent) == text_of_tokens(3)


async def test_if_all_models_fail_the_job_fails_with_the_last_error(models: Models) -> None:
    job = await models.submit("b", "c")
    assert await models.fail("a", job, UpstreamError("a is down")) is None
    assert await models.fail("b", job, InvalidRequest("b takes no prompts", param="prompt")) is None
    assert await models.fail("c", job, EngineError("c is down")) is JobStatus.FAILED
    failed = await models.read(job)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("engine_error", "c is down")
    assert history(failed) == [
        ("a", AttemptOutcome.REROUTED, FallbackReason.UPSTREAM_ERROR),
        ("b", AttemptOutcome.REROUTED, FallbackReason.REFUSED),
        ("c", AttemptOutcome.FAILED, None),
    ]
    assert failed.decisions.route is not None
    assert (failed.decisions.route.left, failed.decisions.route.fallbacks) == (("a", "b"), ())


async def test_a_job_never_moves_after_a_token(models: Models) -> None:
    """Nor does a later attempt of it, which may have none."""
    job = await models.submit("b")
    run, call = await models.start("a", job)
    await call.tokens(1)
    await models.workers["a"].runner.requeue_all()
    assert await asyncio.wait_for(run, WITHIN_S) is None
    assert await models.fail("a", job, UpstreamError("down")) is JobStatus.FAILED
    job = await models.submit("b")
    run, call = await models.start("a", job)
    await call.tokens(1)
    call.fail(UpstreamError("down"))
    models.workers["a"].runner.resume()
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    assert (await models.read(job)).model == "a"


async def test_errors_of_the_client_and_cancels_do_not_move_a_job(models: Models) -> None:
    invalid = await models.submit("b")
    assert await models.fail("a", invalid, InvalidRequest("no", param="prompt")) is JobStatus.FAILED
    cancelled = await models.submit("b")
    run, call = await models.start("a", cancelled)
    assert await models.store.mark_cancelling(cancelled.id)
    call.fail(UpstreamError("down"))
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    late = await models.submit("b")
    run, call = await models.start("a", late)
    models.workers["a"].runner.stop(late.id, InterruptReason.DEADLINE_EXCEEDED)
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.CANCELLED
    filtered = await models.submit("b", "c")
    assert await models.fail("a", filtered, UpstreamError("down")) is None
    assert await models.fail("b", filtered, ContentRefused("no", param="prompt")) is JobStatus.FAILED
    ids = await models.submit("b", request=GenerateRequest(prompt=[1, 2]))
    assert await models.fail("a", ids, UpstreamError("down")) is JobStatus.FAILED, "b has other tokens"


async def test_a_request_is_adapted_to_the_model_that_takes_over(models: Models) -> None:
    """It gets no more tokens than that one allows, and none of the former provider's parts."""
    worker = models.workers["b"]
    worker.runner._context = replace(worker.runner._context, provider="vendor-b", max_output=5)
    own, foreign = (OpaquePart(origin, "thinking", {"s": 1}) for origin in ("vendor-b", "vendor-a"))
    request = GenerateRequest(
        messages=[Message(role="user", content="x"), Message(role="assistant", content="y", opaque=[own, foreign])],
        sampling=Sampling(max_tokens=9),
    )
    moved, admitted = await models.submit("b", request=request), NewJob(models.owner, "b", 3, request)
    assert await models.fail("a", moved, UpstreamError("down")) is None
    run, call = await models.start("b", moved)
    assert call.request.sampling.max_tokens == 5
    assert [list(message.opaque or ()) for message in call.request.messages or ()] == [[], [own]]
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    run, call = await models.start("b", (await models.store.insert(admitted))[0])
    assert call.request.sampling.max_tokens == 9, "its limits were applied when it was admitted"
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED


async def test_the_conversation_continues_with_the_model_that_took_over(models: Models) -> None:
    await models.conversations.remember("conv", ["name"], KnownModel("a"), 60)
    job = await models.submit("b", "c")
    assert await models.fail("a", job, UpstreamError("down")) is None
    assert await models.conversations.find(["name"]) == [KnownModel("b")]
    assert await models.fallbacks.move(await models.read(job), FallbackReason.MODEL_REMOVED)
    assert await models.conversations.find(["name"]) == [KnownModel("c")]


async def test_the_answer_leads_to_the_model_of_its_conversation(models: Models) -> None:
    """By its text. One that the client has not received yet leads to nothing."""
    await models.conversations.remember("conv", ["name"], KnownModel("a"), 60)
    request = GenerateRequest(messages=[Message(role="user", content="Hi")])
    job = await models.submit("b", request=request)
    assert await models.fail("a", job, UpstreamError("down")) is None
    answered = await models.complete("b", job)
    found = Conversation(request).answered("auto", models.owner, [(answered.output[0].text, []), ("another", [])])
    assert await models.conversations.find(found) == [KnownModel("b"), KnownModel("b"), None, None]


async def test_a_job_without_a_route_has_no_fallback(models: Models) -> None:
    job, _ = await models.store.insert(NewJob(models.owner, "a", 3, GenerateRequest(prompt="x")))
    assert await models.fail("a", job, UpstreamError("down")) is JobStatus.FAILED
    assert await models.events(job) == [(EventType.STARTED, None), (EventType.FAILED, None)]


async def test_the_request_of_the_former_upstream_is_cancelled_and_not_resumed(
    models: Models, database: AsyncEngine
) -> None:
    job = await models.submit("b")
    run, call = await models.start("a", job)
    call.accept(STATE)
    call.fail(UpstreamError("it does not answer"))
    assert await asyncio.wait_for(run, WITHIN_S) is None
    assert models.workers["a"].engine.cancelled == [STATE]
    await models.events(job)
    run, call = await models.start("b", job)
    assert call.upstream is None
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert models.workers["b"].engine.cancelled == []
    assert await execute(database, "SELECT model FROM upstream_cancellations") == []


async def test_a_job_whose_upstream_is_busy_waits_if_no_other_model_is_available(
    models: Models, database: AsyncEngine
) -> None:
    await models.serve("a")
    job = await models.submit("b", "c")
    assert await models.fail("a", job, busy()) is None
    waiting = await models.read(job)
    assert (waiting.model, waiting.not_before is None) == ("a", False)
    await execute(database, "UPDATE jobs SET not_before = now()")
    await models.serve("a", "c")
    assert await models.fail("a", job, busy()) is None
    assert (await models.read(job)).model == "c", "the first that is available"
    assert await models.fail("c", job, busy(max_wait_s=0)) is None
    moved = await models.read(job)
    assert moved.model == "b", "it would fail otherwise"
    assert [attempt.model for attempt in moved.attempts] == ["a", "c"]


async def test_a_job_that_moves_starts_no_earlier_than_its_submit_allows(models: Models, database: AsyncEngine) -> None:
    """A soft limit or a budget has put it off. A wait for the former model's upstream ends."""
    put_off = await models.submit("b", delay_s=100)
    assert put_off.not_before is not None
    await models.fallbacks.move_waiting("a")
    assert (await models.read(put_off)).model == "a", "the upstream may be available by then"
    assert await models.fallbacks.move(put_off, FallbackReason.MODEL_REMOVED)
    assert models.sent == [], "it cannot be claimed yet"
    moved = await models.read(put_off)
    assert (moved.model, moved.not_before) == ("b", put_off.not_before)
    assert await models.workers["b"].store.claim(moved.id) is None
    await execute(database, "UPDATE jobs SET not_before = now()")
    await models.complete("b", moved)

    await models.serve("a")
    waiting = await models.submit("b")
    assert await models.fail("a", waiting, busy()) is None
    assert (await models.read(waiting)).not_before is not None
    await models.events(waiting)
    await models.serve("a", "b")
    await models.fallbacks.move_waiting("a")
    moved = await models.read(waiting)
    assert (moved.model, moved.not_before, moved.deferred_since) == ("b", None, None)


async def test_an_upstream_that_runs_the_request_is_not_left_for_a_moment_of_silence(models: Models) -> None:
    job = await models.submit("b")
    run, call = await models.start("a", job)
    call.accept(STATE)
    call.fail(busy())
    assert await asyncio.wait_for(run, WITHIN_S) is None
    assert (await models.read(job)).model == "a"


async def test_a_job_that_used_up_its_attempts_moves_and_runs_alone_first(models: Models) -> None:
    job = await models.submit("b")
    for _ in range(MAX_ATTEMPTS):
        engine = models.workers["a"].engine
        run, _ = await models.start("a", job)
        engine.die()
        assert await asyncio.wait_for(run, WITHIN_S) is None
        await engine.start()
    moved = await models.read(job)
    assert (moved.model, moved.deaths, moved.exposures, moved.suspect) == ("b", 0, 0, True)
    assert history(moved)[-1] == ("a", AttemptOutcome.REROUTED, FallbackReason.ATTEMPTS_EXHAUSTED)
    done = await models.complete("b", job)
    assert [attempt.outcome for attempt in done.attempts] == [
        *[AttemptOutcome.ENGINE_LOST] * (MAX_ATTEMPTS - 1), AttemptOutcome.REROUTED, AttemptOutcome.COMPLETED
    ]  # fmt: skip


@pytest.mark.parametrize("tokens", [0, 1])
async def test_the_job_of_a_dead_worker_moves_if_it_has_no_token(
    models: Models, database: AsyncEngine, tokens: int
) -> None:
    job = await models.submit("b")
    await execute(database, "UPDATE jobs SET deaths = 2")  # of the three that are allowed
    run, call = await models.start("a", job)
    call.accept(STATE)
    await call.tokens(tokens)
    await models.events(job)
    await models.serve("b")
    await execute(database, "UPDATE jobs SET suspect = true")  # so that the death is charged
    await models.sweeper.sweep()
    swept = await models.read(job)
    if tokens:
        assert (swept.model, swept.status) == ("a", JobStatus.FAILED)
    else:
        assert (swept.model, swept.status, swept.deaths) == ("b", JobStatus.QUEUED, 0)
        assert history(swept) == [("a", AttemptOutcome.REROUTED, FallbackReason.ATTEMPTS_EXHAUSTED)]
        assert models.sent == [Hint(job.id, "b", 0, front=True)]
    assert await execute(database, "SELECT model FROM upstream_cancellations") == [("a",)]
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is None, "the worker that seemed dead has lost the job"
    if not tokens:
        assert (await models.complete("b", job)).output[0].text == text_of_tokens(3)


async def test_a_job_whose_start_deadline_cannot_be_met_moves_to_a_model_with_a_worker(
    models: Models, database: AsyncEngine
) -> None:
    job = await models.submit("b", "c", start_within_s=100)
    await models.serve("c")
    await models.sweeper.sweep()
    assert (await models.read(job)).model == "a", "a worker may still come"
    await execute(database, "UPDATE jobs SET created_at = now() - interval '100 s'")
    await models.serve("a")
    await models.sweeper.sweep()
    assert (await models.read(job)).model == "a", "there is one"
    await models.serve()
    await models.sweeper.sweep()
    assert (await models.read(job)).model == "a", "no other model has one"
    await models.serve("c")
    await models.sweeper.sweep()
    moved = await models.read(job)
    assert (moved.model, moved.attempts) == ("c", ())
    assert moved.decisions.route is not None
    assert (moved.decisions.route.left, moved.decisions.route.fallbacks) == (("a",), ("b",))
    assert models.sent == [Hint(job.id, "c", 0, front=True)]
    assert moved.start_before is not None
    assert moved.start_before - job.created_at == timedelta(seconds=100)


async def test_a_paused_model_takes_over_no_job_if_another_one_can(models: Models, database: AsyncEngine) -> None:
    """Whoever moves the job. If all are paused, it waits for the first one."""
    fleet = FleetStore(database)
    await fleet.pause("b", models.owner.key_id)
    failed, removed, waiting = [await models.submit("b", "c") for _ in range(3)]
    assert await models.fail("a", failed, UpstreamError("down")) is None
    assert await models.fallbacks.move(removed, FallbackReason.MODEL_REMOVED)
    await models.fallbacks.move_waiting("a")
    assert [(await models.read(job)).model for job in (failed, removed, waiting)] == ["c", "c", "c"]
    await fleet.pause("c", models.owner.key_id)
    last, busy_job = [await models.submit("b", "c") for _ in range(2)]
    assert await models.fail("a", last, UpstreamError("down")) is None
    assert (await models.read(last)).model == "b"
    assert await models.fail("a", busy_job, busy()) is None
    assert (await models.read(busy_job)).model == "a", "its upstream is only busy"


async def test_a_job_with_a_start_deadline_leaves_a_paused_queue(models: Models, database: AsyncEngine) -> None:
    job = await models.submit("b", start_within_s=100)
    await execute(database, "UPDATE jobs SET created_at = now() - interval '100 s'")
    await models.sweeper.sweep()
    assert (await models.read(job)).model == "a"
    await FleetStore(database).pause("a", models.owner.key_id)
    await models.sweeper.sweep()
    assert (await models.read(job)).model == "b"
    found = models.metrics.registry().get_sample_value(
        "headrace_job_fallbacks_total", {"from": "a", "to": "b", "reason": "paused"}
    )
    assert found == 1


async def test_queued_jobs_leave_a_model_whose_upstream_is_unavailable(models: Models) -> None:
    """Those without output. What the upstream has begun for them is cancelled, and not resumed elsewhere."""
    jobs = [await models.submit("b") for _ in range(2)]
    await models.serve("a")
    run, call = await models.start("a", jobs[0])
    call.accept(STATE)
    call.fail(busy())
    assert await asyncio.wait_for(run, WITHIN_S) is None
    with_output = await models.submit("b")
    run, call = await models.start("a", with_output)
    await call.tokens(1)
    await models.workers["a"].runner.requeue_all()
    assert await asyncio.wait_for(run, WITHIN_S) is None
    await models.events(jobs[0])
    await models.fallbacks.move_waiting("a")
    assert [(await models.read(job)).model for job in jobs] == ["a", "a"], "b is not available either"
    await models.serve("a", "b")
    await models.fallbacks.move_waiting("a")
    assert [(await models.read(job)).model for job in (*jobs, with_output)] == ["b", "b", "a"]
    due = await models.workers["a"].store.due_cancellations("a", 5)
    assert [(one.job_id, one.state) for one in due] == [(jobs[0].id, STATE)]
    run, call = await models.start("b", jobs[0])
    assert call.upstream is None
    call.fail(UpstreamError("down"))
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    assert not await models.workers["a"].store.due_cancellations("b", 5)


async def test_jobs_that_cannot_move_do_not_hide_those_behind_them(
    models: Models, monkeypatch: pytest.MonkeyPatch, database: AsyncEngine
) -> None:
    """One check reads a limited number of jobs. Redis has lost the log of one; another one continues a leader."""
    monkeypatch.setattr(fallbacks, "LIMIT", 1)
    lost, continuing, last = [await models.submit("b", priority=priority) for priority in (1, 2, 3)]
    run, _ = await models.start("a", lost)
    await models.workers["a"].runner.requeue_all()
    assert await asyncio.wait_for(run, WITHIN_S) is None
    await models.events(lost)
    await models.logs.delete(lost.id)
    await execute(database, "UPDATE jobs SET continues = 'job_x' WHERE priority = 2")
    for _ in range(2):
        await models.fallbacks.move_waiting("a")
    assert [(await models.read(job)).model for job in (lost, continuing, last)] == ["a", "a", "b"]


async def test_jobs_of_a_removed_model_move(models: Models, redis: Redis) -> None:
    job = await models.submit("b")
    await models.serve("b")
    removed = RemovedModels(Registry({}), models.recovery, models.terminator, redis, grace_s=0)
    assert await removed.check() == 1
    moved = await models.read(job)
    assert (moved.model, moved.status) == ("b", JobStatus.QUEUED)


async def test_a_lost_log_of_a_model_without_output_takes_nothing_back(models: Models) -> None:
    job = await models.submit("b", "c")
    assert await models.fail("a", job, UpstreamError("down")) is None
    await models.events(job)
    await models.logs.delete(job.id)
    assert await models.fail("b", job, UpstreamError("down")) is None, "it may move again"
    await models.complete("c", job)
    assert EventType.RESTARTED not in [kind for kind, _ in await models.events(job)]


async def test_a_reader_resumes_at_the_model_that_took_over_after_a_lost_log(models: Models, redis: Redis) -> None:
    """It has received the start at the first model, and receives all that the next one writes."""
    hub = StreamHub(redis, models.logs, models.store, models.metrics, resync_s=0.2)
    receiving = asyncio.create_task(hub.run())
    try:
        job = await models.submit("b")
        assert await models.fail("a", job, UpstreamError("down")) is None
        assert [kind for kind, _ in await models.events(job)] == [EventType.STARTED]
        seen = await anext(hub.follow(job.id))
        await models.logs.delete(job.id)
        reading = asyncio.create_task(read_all(hub, job, after=seen[-1].seq))
        await models.complete("b", job)
        events = await asyncio.wait_for(reading, WITHIN_S)
    finally:
        await cancel_and_wait(receiving)
    start = seq_before(2) + 1
    assert [event.seq for event in (*seen, *events)] == [1, *range(start, start + len(events))]
    assert [event.line() for event in events] == [
        event.line() for event in parse_archive(await models.store.archived_log(job.id) or "")
    ]
    assert "".join(event.delta().text for event in events if event.type is EventType.DELTA) == text_of_tokens(3)


async def read_all(hub: StreamHub, job: Job, *, after: int) -> list[Event]:
    return [event async for batch in hub.follow(job.id, after) for event in batch]


async def test_a_lost_log_may_have_had_output(models: Models) -> None:
    job = await models.submit("b")
    run, _ = await models.start("a", job)
    await models.workers["a"].runner.drain(0)
    assert await asyncio.wait_for(run, WITHIN_S) is None
    await models.events(job)
    await models.logs.delete(job.id)
    assert not await models.fallbacks.move(await models.read(job), FallbackReason.UPSTREAM_BUSY)
