"""Jobs that a worker passes to its engine while their claims are being committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.events import EventType
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import BATCH_PRIORITY, Hint
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED, exhausted
from shared.postgres.claim_store import ClaimStore
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.terminator import JobTerminator
from shared.redis import carried_requests
from shared.redis import keys as redis_keys
from shared.redis.carried_requests import MAX_BYTES, TTL_S, CarriedRequest, CarriedRequests, carried
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender, celery_app
from shared.runtime.aio import cancel_and_wait
from tests.conftest import TEST_REDIS_DB, Servers, Workers
from tests.integration.workers.execution.test_runner import WITHIN_S, Run, Worker
from tests.support.metrics import worker_metrics
from tests.support.steered_engine import Call, text_of_tokens
from workers.engines.base import EngineDead, PromptInfo
from workers.execution.attempts import early_start
from workers.execution.attempts.context import InterruptReason
from workers.execution.attempts.early_start import EarlyStarts
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool

MODEL = "m"
MAX_ATTEMPTS = 3


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are held by the test, on a machine that may be busy."""
    monkeypatch.setattr(early_start, "MAX_WAIT_S", 60)


class HeldClaims:
    """The claims of a store, each of which begins, and is answered, when the test lets it."""

    def __init__(self, store: ClaimStore) -> None:
        self._claim = store.claim
        self.may_begin, self.may_answer = asyncio.Event(), asyncio.Event()
        self.answered = asyncio.Event()
        store.claim = self.claim  # type: ignore[method-assign]

    async def claim(self, job_id: str, *, suspects: bool = True) -> Job | None:
        await self.may_begin.wait()
        job = await self._claim(job_id, suspects=suspects)
        self.answered.set()
        await self.may_answer.wait()
        return job

    def let(self) -> None:
        self.may_begin.set()
        self.may_answer.set()

    def hold(self) -> None:
        """Hold those that begin from now on."""
        self.may_begin.clear()
        self.may_answer.clear()


HEADER = f'[1,"{MODEL}"]\n'.encode()
UNREADABLE = [
    b"", b"nonsense", b"1\n{}", HEADER, HEADER + b"{}x", HEADER + b'{"prompt": 5}', HEADER + b"x" * MAX_BYTES
]  # fmt: skip


class EarlyWorker(Worker):
    """A worker that starts jobs early, and whose claims the test holds."""

    def __init__(self, store: ClaimStore, logs: EventLog, redis: Redis, *, slots: int = 64) -> None:
        super().__init__("w", store, logs, slots, None)
        self.starts = EarlyStarts(CarriedRequests(redis), MODEL, ["tone"])
        self.engine.adapter_fingerprints = {"tone": "fp_tone"}
        context = replace(self.runner.context, starts_early=True, adapter_revisions={"tone": "r"})
        self.runner = Runner(context, SlotPool(slots, yields=True), early_starts=self.starts)
        self.claims = HeldClaims(store)

    async def start_claimed(self, store: JobStore, owner: Owner) -> tuple[Job, Run, Call]:
        """Run a new job that is not started early."""
        job, _ = await store.insert(NewJob(owner, MODEL, 3, GenerateRequest(prompt="z")))
        self.claims.let()
        run, call = await self.start(job)
        self.claims.hold()
        return job, run, call

    def count(self, outcome: str) -> float:
        metrics = self.runner.context.metrics
        value: float = metrics.early_starts.labels(metrics.model_label(MODEL), outcome)._value.get()
        return value

    @property
    def counts(self) -> tuple[float, float]:
        """Early starts that were kept, and that were thrown away."""
        return self.count("kept"), self.count("discarded")


@pytest.fixture
async def worker(database: AsyncEngine, logs: EventLog, redis: Redis) -> AsyncIterator[EarlyWorker]:
    worker = EarlyWorker(ClaimStore(database, "w", adapters=["tone"]), logs, redis)
    flushing = asyncio.create_task(worker.log_writer.run())
    yield worker
    await cancel_and_wait(flushing, again_s=0.1)


@pytest.fixture
async def job(store: JobStore, owner: Owner, worker: EarlyWorker) -> Job:
    """A job of a project from which the worker has claimed one."""
    other, _ = await store.insert(NewJob(owner, MODEL, 3, GenerateRequest(prompt="y")))
    claimed = await store_claim(worker, other)
    worker.starts.learn(claimed)
    job, _ = await store.insert(NewJob(owner, MODEL, 3, GenerateRequest(prompt="x")))
    return job


async def store_claim(worker: EarlyWorker, job: Job) -> Job:
    claimed = await worker.claims._claim(job.id, suspects=True)
    assert claimed is not None
    return claimed


async def carry(redis: Redis, job: Job, request: bytes | None = None) -> None:
    """Put a job's request beside its hint."""
    encoded = request or carried(job)
    assert encoded is not None
    await redis.set(redis_keys.carried_request(job.id), encoded, ex=TTL_S)


async def verdict(store: JobStore, job: Job) -> tuple[int, int, bool]:
    """The deaths that a job was charged with, those that it was not charged with, and whether it is a suspect."""
    row = await store.get(job.id)
    assert row is not None
    return row.deaths, row.exposures, row.suspect


async def test_nothing_is_published_before_the_claim_is_answered(
    worker: EarlyWorker, store: JobStore, logs: EventLog, redis: Redis, job: Job
) -> None:
    await carry(redis, job)
    run, call = await worker.start(job)
    assert call.request.cache_salt is not None, "the prefix caches of projects stay apart"
    generated = asyncio.ensure_future(call.tokens(3))
    worker.claims.may_begin.set()
    await worker.claims.answered.wait()
    await worker.log_writer.drain(WITHIN_S)
    assert await logs.read(job.id) == [], "not even when the claim is committed, before the worker knows"
    assert not generated.done(), "the engine's output waits in the engine"
    worker.claims.may_answer.set()
    await asyncio.wait_for(generated, WITHIN_S)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    await worker.log_writer.drain(WITHIN_S)
    events = await logs.read(job.id)
    assert events[0].type is EventType.STARTED
    assert [event.type.terminal for event in events].count(True) == 1
    done = await store.get(job.id)
    assert done is not None
    assert done.output[0].text == text_of_tokens(4)
    assert [(item.number, item.outcome) for item in done.attempts] == [(1, "completed")]
    assert worker.counts == (1, 0)
    assert await redis.keys("hr:request:*") == []


@pytest.mark.parametrize("why", ["cancelled", "claimed by another worker"])
async def test_a_lost_claim_aborts_the_start(
    worker: EarlyWorker,
    store: JobStore,
    recovery_store: RecoveryStore,
    workers: Workers,
    logs: EventLog,
    redis: Redis,
    job: Job,
    why: str,
) -> None:
    await carry(redis, job)
    run, call = await worker.start(job)
    if why == "cancelled":
        terminator = JobTerminator(recovery_store, logs, 60, worker_metrics())
        assert await terminator.end(job, JobStatus.CANCELLED, CANCELLED)
    else:
        assert await workers("v").claim(job.id) is not None
    row, log = await store.get(job.id), await logs.read(job.id)
    worker.claims.let()
    assert await asyncio.wait_for(run, WITHIN_S) is None
    assert call.ended.is_set()
    assert worker.engine.calls == {}
    await worker.log_writer.drain(WITHIN_S)
    assert (await store.get(job.id), await logs.read(job.id)) == (row, log)
    assert worker.counts == (0, 1)


async def test_a_job_of_an_adapter_starts_with_the_adapter(
    worker: EarlyWorker, store: JobStore, redis: Redis, job: Job
) -> None:
    toned, _ = await store.insert(NewJob(job.owner, "tone", 3, GenerateRequest(prompt="x")))
    await carry(redis, toned)
    run, call = await worker.start(toned)
    assert call.request.adapter == "tone"
    worker.claims.let()
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.counts == (1, 0)


async def test_a_request_for_another_model_is_not_started(worker: EarlyWorker, redis: Redis, job: Job) -> None:
    await carry(redis, replace(job, model="other"))
    worker.claims.let()
    run, call = await worker.start(job)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.counts == (0, 0)


async def test_what_redis_has_is_not_run_if_the_row_says_something_else(
    worker: EarlyWorker, store: JobStore, redis: Redis, job: Job
) -> None:
    forged = replace(job, request=GenerateRequest(prompt="forged"))
    await carry(redis, forged)
    run, call = await worker.start(job)
    assert call.request.prompt == "forged"
    again = worker.engine.next_call(job.id)
    worker.claims.let()
    second = await asyncio.wait_for(again, WITHIN_S)
    assert call.ended.is_set()
    assert second.request.prompt == "x"
    second.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.counts == (0, 1)


@pytest.mark.parametrize("content", UNREADABLE)
async def test_an_unreadable_request_is_ignored(worker: EarlyWorker, redis: Redis, job: Job, content: bytes) -> None:
    await redis.set(redis_keys.carried_request(job.id), content)
    worker.claims.let()
    run, call = await worker.start(job)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.counts == (0, 0)


async def test_a_job_that_ran_before_is_not_continued_by_an_early_start(
    worker: EarlyWorker, store: JobStore, recovery_store: RecoveryStore, workers: Workers, redis: Redis, job: Job
) -> None:
    """Its worker has died after the claim and before it took the request."""
    await carry(redis, job)
    assert await workers("dead").claim(job.id) is not None
    assert job.id in [hint.job_id for hint in await recovery_store.requeue_stalled(3)]
    run, early = await worker.start(job)
    assert early.attempt == 1
    again = worker.engine.next_call(job.id)
    worker.claims.let()
    call = await asyncio.wait_for(again, WITHIN_S)
    assert early.ended.is_set()
    assert call.attempt == 2
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.counts == (0, 1)


async def test_a_claim_that_takes_too_long_ends_the_start(
    worker: EarlyWorker, redis: Redis, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an outage of the database: nobody would read the upstream's connection."""
    monkeypatch.setattr(early_start, "MAX_WAIT_S", 0.01)
    await carry(redis, job)
    run, early = await worker.start(job)
    await asyncio.wait_for(early.ended.wait(), WITHIN_S)
    again = worker.engine.next_call(job.id)
    worker.claims.let()
    call = await asyncio.wait_for(again, WITHIN_S)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.counts == (0, 1)


class TestEngineDeath:
    """The engine dies while it has a job that is not claimed yet."""

    @pytest.fixture(params=["before its first output", "after its first output"])
    def when(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the engine dies: an early start gets the first output only."""

        async def run(call: Call) -> AsyncIterator[PromptInfo]:
            step = await call._steps.get()
            assert isinstance(step, Exception)
            raise step
            yield PromptInfo(0)  # never: what makes it a generator

        if request.param == "before its first output":
            monkeypatch.setattr(Call, "run", run)

    @pytest.mark.usefixtures("when")
    @pytest.mark.parametrize("paused", [False, True])
    async def test_the_only_job_is_charged_and_fails_after_its_last_attempt(
        self, worker: EarlyWorker, store: JobStore, redis: Redis, job: Job, paused: bool
    ) -> None:
        await carry(redis, job)
        run, _ = await worker.start(job)
        worker.engine.die()
        if paused:  # the supervisor has found the death
            worker.runner.pause()
        worker.claims.let()
        assert await asyncio.wait_for(run, WITHIN_S) is None
        assert await verdict(store, job) == (1, 0, True)
        queued = await store.get(job.id)
        assert queued is not None
        assert (queued.status, [item.outcome for item in queued.attempts]) == (JobStatus.QUEUED, ["engine_lost"])
        assert worker.sent == [Hint(job.id, MODEL, 0, front=True)]
        for _ in range(MAX_ATTEMPTS - 1):
            await worker.engine.start()
            worker.runner.resume()
            run, _ = await worker.start(job)
            worker.engine.die()
            status = await asyncio.wait_for(run, WITHIN_S)
        assert status is JobStatus.FAILED
        failed = await store.get(job.id)
        assert failed is not None
        assert failed.error == exhausted(MAX_ATTEMPTS)

    @pytest.mark.usefixtures("when")
    async def test_a_claimed_job_beside_it_is_not_charged(
        self, worker: EarlyWorker, store: JobStore, redis: Redis, job: Job
    ) -> None:
        neighbor, beside, _ = await worker.start_claimed(store, job.owner)
        await carry(redis, job)
        run, _ = await worker.start(job)
        worker.engine.die()
        assert await asyncio.wait_for(beside, WITHIN_S) is None
        assert await verdict(store, neighbor) == (0, 1, True)
        worker.claims.let()
        assert await asyncio.wait_for(run, WITHIN_S) is None
        assert await verdict(store, job) == (0, 1, True)

    async def test_a_job_beside_it_that_has_a_token_is_no_suspect(
        self, worker: EarlyWorker, store: JobStore, redis: Redis, job: Job
    ) -> None:
        neighbor, beside, call = await worker.start_claimed(store, job.owner)
        await call.tokens(1)
        await carry(redis, job)
        run, _ = await worker.start(job)
        worker.engine.die()
        assert await asyncio.wait_for(beside, WITHIN_S) is None
        worker.claims.let()
        assert await asyncio.wait_for(run, WITHIN_S) is None
        assert await verdict(store, neighbor) == (0, 1, False)
        assert await verdict(store, job) == (1, 0, True)

    async def test_one_whose_claim_fails_counts_until_the_engine_runs_again(
        self,
        worker: EarlyWorker,
        store: JobStore,
        redis: Redis,
        job: Job,
        recovery_store: RecoveryStore,
        logs: EventLog,
    ) -> None:
        neighbor, beside, call = await worker.start_claimed(store, job.owner)
        await carry(redis, job)
        run, _ = await worker.start(job)
        worker.engine.dead = True  # the neighbor finds that later
        terminator = JobTerminator(recovery_store, logs, 60, worker_metrics())
        assert await terminator.end(job, JobStatus.CANCELLED, CANCELLED)
        worker.claims.let()
        assert await asyncio.wait_for(run, WITHIN_S) is None
        call.fail(EngineDead())
        assert await asyncio.wait_for(beside, WITHIN_S) is None
        assert await verdict(store, neighbor) == (0, 1, True)
        await worker.engine.start()
        worker.runner.resume()
        beside, _ = await worker.start(neighbor)
        worker.engine.die()
        assert await asyncio.wait_for(beside, WITHIN_S) is None
        assert await verdict(store, neighbor) == (1, 1, True)

    async def test_one_that_was_aborted_before_does_not_count(
        self, worker: EarlyWorker, store: JobStore, workers: Workers, redis: Redis, job: Job
    ) -> None:
        neighbor, beside, _ = await worker.start_claimed(store, job.owner)
        await carry(redis, job)
        run, _ = await worker.start(job)
        assert await workers("v").claim(job.id) is not None
        worker.claims.let()
        assert await asyncio.wait_for(run, WITHIN_S) is None
        worker.engine.die()
        assert await asyncio.wait_for(beside, WITHIN_S) is None
        assert await verdict(store, neighbor) == (1, 0, True)

    async def test_a_dead_engine_gets_no_request(
        self, worker: EarlyWorker, store: JobStore, redis: Redis, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It dies while the request is being taken: the job was not there."""
        take = worker.starts.requests.take

        async def die_and_take(job_id: str, worker_name: str) -> CarriedRequest | None:
            worker.engine.die()
            return await take(job_id, worker_name)

        monkeypatch.setattr(worker.starts.requests, "take", die_and_take)
        await carry(redis, job)
        worker.claims.let()
        assert await asyncio.wait_for(worker.runner.run(job.id), WITHIN_S) is None
        assert await verdict(store, job) == (0, 0, False)
        assert worker.counts == (0, 0)


async def test_an_error_of_the_engine_before_the_claim_is_that_of_the_job(
    worker: EarlyWorker, store: JobStore, redis: Redis, job: Job
) -> None:
    """The request is not sent again, which an upstream may charge for."""
    await carry(redis, job)
    run, early = await worker.start(job)
    early.fail(ZeroDivisionError("as engines do"))
    worker.claims.let()
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    failed = await store.get(job.id)
    assert failed is not None
    assert failed.error is not None
    assert failed.error.message == "ZeroDivisionError: as engines do"
    assert worker.counts == (1, 0)


async def test_a_worker_that_is_paused_during_the_claim_puts_the_job_back(
    worker: EarlyWorker, store: JobStore, redis: Redis, job: Job
) -> None:
    await carry(redis, job)
    run, early = await worker.start(job)
    worker.claims.may_begin.set()
    await worker.claims.answered.wait()
    worker.runner.pause()
    worker.claims.may_answer.set()
    assert await asyncio.wait_for(run, WITHIN_S) is None
    assert early.ended.is_set()
    queued = await store.get(job.id)
    assert queued is not None
    assert [item.outcome for item in queued.attempts] == ["handed_back"]
    assert worker.counts == (0, 1)


async def test_a_cancel_after_the_claim_keeps_the_text_so_far(
    worker: EarlyWorker, store: JobStore, redis: Redis, job: Job
) -> None:
    await carry(redis, job)
    worker.claims.let()
    run, call = await worker.start(job)
    await call.tokens(2)
    worker.runner.stop(job.id, InterruptReason.CANCELLED)
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.CANCELLED
    cancelled = await store.get(job.id)
    assert cancelled is not None
    assert cancelled.output[0].text == text_of_tokens(2)


async def test_without_a_free_slot_the_request_is_left(
    workers: Workers, logs: EventLog, redis: Redis, job: Job
) -> None:
    full = EarlyWorker(workers("full"), logs, redis, slots=0)
    await carry(redis, job)
    full.claims.let()
    run, call = await full.start(job)
    assert await redis.exists(redis_keys.carried_request(job.id))
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED


async def test_the_first_job_of_a_project_is_not_started_early(
    worker: EarlyWorker, store: JobStore, redis: Redis, owner: Owner
) -> None:
    """The worker does not know the salt of the project's prefixes yet."""
    first, _ = await store.insert(NewJob(owner, MODEL, 3, GenerateRequest(prompt="x")))
    await carry(redis, first)
    worker.claims.let()
    run, call = await worker.start(first)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert worker.counts == (0, 0)
    assert worker.starts.salt(owner.project_id) == call.request.cache_salt


class TestHints:
    @pytest.fixture
    def sender(self, servers: Servers, redis: Redis) -> HintSender:
        return HintSender(celery_app(servers.redis(TEST_REDIS_DB)), redis)

    async def test_the_first_hint_has_the_request_beside_it_for_seconds(
        self, sender: HintSender, redis: Redis, job: Job
    ) -> None:
        sender.put_first(Hint(job.id, MODEL, 3), carried(job))
        await sender.flush()
        key = redis_keys.carried_request(job.id)
        assert 0 < await redis.pttl(key) <= 1000 * TTL_S
        taken = await CarriedRequests(redis).take(job.id, "w")
        assert taken is not None
        assert (taken.project_id, taken.request) == (job.owner.project_id, job.request)
        assert await CarriedRequests(redis).take(job.id, "v") is None, "it is taken once"
        assert await CarriedRequests(redis).taken_by("w") == [job.id]
        assert await CarriedRequests(redis).taken_by("v") == []

    async def test_the_list_of_a_worker_is_bounded(
        self, redis: Redis, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(carried_requests, "TAKEN", 2)
        requests = CarriedRequests(redis)
        for number in range(3):
            await carry(redis, replace(job, id=f"job_{number}"))
            assert await requests.take(f"job_{number}", "w") is not None
        assert await requests.taken_by("w") == ["job_2", "job_1"]
        assert 0 < await redis.ttl(redis_keys.taken_requests("w")) <= carried_requests.TAKEN_TTL_S

    async def test_a_hint_that_is_sent_again_has_none(self, sender: HintSender, redis: Redis, job: Job) -> None:
        sender.put_first(Hint(job.id, MODEL, 3), carried(job))
        await sender.flush()
        sender.put(Hint(job.id, MODEL, 3, front=True))
        await sender.flush()
        assert await redis.keys("hr:request:*") == []

    async def test_nor_has_one_whose_first_try_may_have_been_sent(
        self, sender: HintSender, redis: Redis, job: Job
    ) -> None:
        await redis.set("headrace.m", "not a list")
        sender.put_first(Hint(job.id, MODEL, 0), carried(job))
        assert not await sender.flush()
        await redis.delete("headrace.m")
        assert await sender.flush()
        assert await redis.llen("headrace.m") == 1
        assert await redis.keys("hr:request:*") == []

    def test_only_small_urgent_requests_that_do_not_expire_first_are_carried(self, job: Job) -> None:
        assert carried(job) is not None
        assert carried(job, start_within_s=TTL_S) is None
        assert carried(replace(job, priority=BATCH_PRIORITY)) is None
        assert carried(replace(job, request=GenerateRequest(prompt="x" * MAX_BYTES))) is None
