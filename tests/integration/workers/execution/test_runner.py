"""The runner on real servers, with an engine that the test controls token by token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.events import EventType, parse_archive
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import BATCH_PRIORITY, Hint
from shared.domain.request import GenerateRequest, Sampling, StructuredOutputs
from shared.domain.structure_size import StructureBounds
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import transaction
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.redis.event_log import EventLog
from shared.runtime.aio import cancel_and_wait
from tests.conftest import Workers
from tests.support.metrics import worker_metrics
from tests.support.steered_engine import Call, SteeredEngine, text_of_tokens
from tests.support.waiting import eventually
from workers.engines.resume import Resume
from workers.execution.attempts.context import AttemptContext, InterruptReason
from workers.execution.compilations import Compilations
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool

Run = asyncio.Task[JobStatus | None]
WITHIN_S = 20


class Worker:
    """A runner with its engine and log writer."""

    def __init__(
        self, name: str, store: ClaimStore, logs: EventLog, slots: int, compilations: Compilations | None
    ) -> None:
        self.name = name
        self.store = store
        self.engine = SteeredEngine(slots)
        self.sent: list[Hint] = []
        self.log_writer = LogWriter(logs, store.list_claims, late_s=60)
        context = AttemptContext(
            worker=name,
            engine=self.engine,
            store=store,
            logs=logs,
            log_writer=self.log_writer,
            log_ttl_s=60,
            max_attempts=3,
            send=self.sent.append,
            on_engine_death=lambda: None,
            metrics=worker_metrics(),
            compilations=compilations,
            engine_of={"m": "simulated"}.get,
        )
        self.runner = Runner(context, SlotPool(slots, yields=True))

    async def start(self, job: Job) -> tuple[Run, Call]:
        """Run a job; returns once the engine has its request."""
        entered = self.engine.next_call(job.id)
        run = asyncio.create_task(self.runner.run(job.id))
        return run, await asyncio.wait_for(entered, WITHIN_S)


@asynccontextmanager
async def working(
    name: str, store: ClaimStore, logs: EventLog, slots: int = 64, compilations: Compilations | None = None
) -> AsyncIterator[Worker]:
    worker = Worker(name, store, logs, slots, compilations)
    flushing = asyncio.create_task(worker.log_writer.run())
    try:
        yield worker
    finally:
        await cancel_and_wait(flushing, again_s=0.1)  # the first cancellation is often lost


@pytest.fixture
async def worker(workers: Workers, logs: EventLog) -> AsyncIterator[Worker]:
    async with working("w", workers("w"), logs) as worker:
        yield worker


@pytest.fixture
async def job(store: JobStore, owner: Owner) -> Job:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    return job


async def read(store: JobStore, job: Job) -> Job:
    found = await store.get(job.id)
    assert found is not None
    return found


async def test_a_result_survives_broken_database_connections(
    worker: Worker, store: JobStore, logs: EventLog, job: Job, database: AsyncEngine
) -> None:
    """The statement waits for a lock and its connection is cut: it is retried, and the result is written once."""
    run, call = await worker.start(job)
    await call.tokens(5)
    async with transaction(database) as locking:
        await locking.execute(text("SELECT 1 FROM jobs FOR UPDATE"))
        call.finish("stop")
        for _ in range(2):
            await _cut(database, await _blocked(database))
        assert not run.done()
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    done = await read(store, job)
    assert done.output[0].text == text_of_tokens(6)
    assert [(item.number, item.tokens, item.outcome) for item in done.attempts] == [(1, 6, "completed")]
    await worker.log_writer.drain(WITHIN_S)
    archived = await store.archived_log(job.id)
    assert archived is not None
    assert [item.line() for item in await logs.read(job.id)] == [item.line() for item in parse_archive(archived)]


async def _blocked(database: AsyncEngine) -> int:
    """The pid of the server process that waits for a lock."""

    async def probe() -> int | None:
        async with database.connect() as connection:
            found = await connection.execute(
                text(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
                )
            )
            pid: int | None = found.scalar_one_or_none()
            return pid

    return await eventually(probe, "the result's statement waits for the lock")


async def _cut(database: AsyncEngine, pid: int) -> None:
    """Terminate a server process; returns when it has ended."""
    async with database.connect() as connection:
        gone = await connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        assert gone.scalar_one()


async def test_an_unexpected_exception_fails_only_its_own_job(
    worker: Worker, store: JobStore, job: Job, owner: Owner
) -> None:
    other, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="y")))
    run, call = await worker.start(job)
    other_run, other_call = await worker.start(other)
    await call.tokens(3)
    call.fail(ZeroDivisionError("as engines do"))
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    failed = await read(store, job)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("engine_error", "ZeroDivisionError: as engines do")
    assert failed.output[0].text == text_of_tokens(3), "its output so far is kept"
    other_call.finish("stop")
    assert await asyncio.wait_for(other_run, WITHIN_S) is JobStatus.COMPLETED


async def test_a_job_without_its_claim_is_stopped_and_writes_nothing(
    worker: Worker, store: JobStore, workers: Workers, recovery_store: RecoveryStore, logs: EventLog, job: Job
) -> None:
    run, call = await worker.start(job)
    await call.tokens(3)
    await worker.log_writer.drain(WITHIN_S)
    assert [hint.job_id for hint in await recovery_store.requeue_stalled(3)] == [job.id]
    async with working("v", workers("v"), logs) as second:
        second_run, second_call = await second.start(job)
        assert second_call.prior == text_of_tokens(3)
        await second_call.tokens(2)
        await second.log_writer.drain(WITHIN_S)
        before, log_before = await read(store, job), await logs.read(job.id)

        await call.tokens(4)
        worker.runner.stop(job.id, InterruptReason.CLAIM_LOST, 1)
        assert await asyncio.wait_for(run, WITHIN_S) is None
        await worker.log_writer.drain(WITHIN_S)
        assert (await read(store, job), await logs.read(job.id)) == (before, log_before)
        assert worker.engine.calls == {}, "its slot is free"

        second_call.finish("stop")
        assert await asyncio.wait_for(second_run, WITHIN_S) is JobStatus.COMPLETED
    assert (await read(store, job)).output[0].text == text_of_tokens(6)


async def test_a_later_attempt_on_the_same_worker_stops_the_earlier_one(
    worker: Worker, recovery_store: RecoveryStore, job: Job
) -> None:
    """The worker's lease expired unnoticed and it claimed the job again: the first attempt must free its slot."""
    run, call = await worker.start(job)
    await call.tokens(1)
    await recovery_store.requeue_stalled(3)
    later, later_call = await worker.start(job)
    assert await asyncio.wait_for(run, WITHIN_S) is None
    assert list(worker.engine.calls) == [(job.id, 2)]
    later_call.finish("stop")
    assert await asyncio.wait_for(later, WITHIN_S) is JobStatus.COMPLETED


async def test_the_end_of_a_job_does_not_count_as_a_message(worker: Worker, job: Job) -> None:
    """A worker with a stuck consumer still ends jobs; the watchdog must not mistake that for consuming."""
    run, call = await worker.start(job)
    last_message = worker.runner.last_message
    call.finish("stop")
    await asyncio.wait_for(run, WITHIN_S)
    assert worker.runner.last_message == last_message


async def test_a_job_that_ends_after_redis_was_wiped_has_its_log_in_the_row(
    worker: Worker, store: JobStore, logs: EventLog, job: Job
) -> None:
    run, call = await worker.start(job)
    await call.tokens(3)
    await worker.log_writer.drain(WITHIN_S)
    await logs.delete(job.id)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    await worker.log_writer.drain(WITHIN_S)
    archived = await store.archived_log(job.id)
    assert archived is not None
    events = parse_archive(archived)
    assert [item.type for item in events][-1] is EventType.COMPLETED
    written = [item.line() for item in await logs.read(job.id)]
    assert written == [item.line() for item in events][: len(written)], "a prefix of the log, possibly empty or whole"


async def test_a_claim_in_progress_when_a_drain_starts_is_requeued(
    worker: Worker, store: JobStore, job: Job, database: AsyncEngine
) -> None:
    """The drain waits for the claim, and the job is not run to its end."""
    async with transaction(database) as locking:
        await locking.execute(text("LOCK TABLE jobs IN SHARE MODE"))
        run = asyncio.create_task(worker.runner.run(job.id))
        await _blocked(database)
        drain = asyncio.create_task(worker.runner.drain(60))
        await asyncio.wait({drain}, timeout=0.1)
        assert not drain.done()
    await asyncio.wait_for(drain, WITHIN_S)
    assert await asyncio.wait_for(run, WITHIN_S) is None
    after = await read(store, job)
    assert (after.status, after.deaths) == (JobStatus.QUEUED, 0)
    assert [item.outcome for item in after.attempts] == ["handed_back"]
    assert worker.engine.calls == {}


async def test_batch_jobs_are_preempted_by_urgent_ones_and_lose_no_token(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner
) -> None:
    """An urgent job starts at once in an engine full of batch jobs; the batch job resumes at its next token."""

    async def submit(priority: int, choices: int = 1) -> Job:
        request = GenerateRequest(prompt="x", sampling=Sampling(n=choices))
        return (await store.insert(NewJob(owner, "m", priority, request)))[0]

    several, older, newer = await submit(BATCH_PRIORITY, 2), await submit(BATCH_PRIORITY), await submit(BATCH_PRIORITY)
    async with working("w", workers("w"), logs, slots=3) as worker:
        runs = {job.id: await worker.start(job) for job in (several, older, newer)}
        await runs[newer.id][1].tokens(5)
        assert worker.sent == []

        urgent = await submit(3)
        _, urgent_call = await worker.start(urgent)
        await urgent_call.tokens(1)
        assert await asyncio.wait_for(runs[newer.id][0], WITHIN_S) is None, "the one claimed last is preempted"
        assert worker.sent == [Hint(newer.id, "m", BATCH_PRIORITY, front=True)], (
            "to the front of the batch messages only"
        )
        assert {job_id for job_id, _ in worker.engine.calls} == {several.id, older.id, urgent.id}
        row = await read(store, newer)
        assert (row.status, row.deaths) == (JobStatus.QUEUED, 0)
        assert [(item.tokens, item.outcome) for item in row.attempts] == [(5, "set_aside")]

        await worker.start(await submit(0))
        await asyncio.wait_for(runs[older.id][0], WITHIN_S)
        await worker.start(await submit(6))
        await asyncio.wait_for(runs[several.id][0], WITHIN_S)
        assert len(worker.engine.calls) == 3, "the job that cannot resume was preempted last"

        # Urgent jobs are not preempted: a batch job that is claimed now finds no slot and is requeued.
        assert await asyncio.wait_for(worker.runner.run(older.id), WITHIN_S) is None
        urgent_call.finish("stop")
        await urgent_call.ended.wait()
        again, call = await worker.start(newer)
        assert call.prior == text_of_tokens(5)
        await call.tokens(2)
        call.finish("stop")
        assert await asyncio.wait_for(again, WITHIN_S) is JobStatus.COMPLETED
        await worker.log_writer.drain(WITHIN_S)
    done = await read(store, newer)
    assert done.output[0].text == text_of_tokens(8)
    assert EventType.RESTARTED not in {item.type for item in await logs.read(newer.id)}


@pytest.mark.parametrize(
    ("choices", "fingerprint", "restarts"),
    [(1, "fp_other", False), (2, "fp_steered", False), (2, "fp_other", True)],
    ids=["exact, another fingerprint", "regenerated, the same", "regenerated, another fingerprint"],
)
async def test_nothing_is_regenerated_across_fingerprints(
    worker: Worker,
    workers: Workers,
    store: JobStore,
    logs: EventLog,
    owner: Owner,
    choices: int,
    fingerprint: str,
    restarts: bool,
) -> None:
    request = GenerateRequest(prompt="x", sampling=Sampling(n=choices))
    job, _ = await store.insert(NewJob(owner, "m", 3, request))
    worker.engine.several_choices = Resume.REGENERATE
    run, call = await worker.start(job)
    await call.tokens(3)
    await worker.runner.requeue_all()
    assert await asyncio.wait_for(run, WITHIN_S) is None
    await worker.log_writer.drain(WITHIN_S)
    async with working("v", workers("v"), logs) as other:
        other.engine.several_choices = Resume.REGENERATE
        other.engine.fingerprint = fingerprint
        run, call = await other.start(job)
        assert call.prior == ("" if restarts else text_of_tokens(3))
        await call.tokens(1 + 3 * restarts)
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
        await other.log_writer.drain(WITHIN_S)
    done = await read(store, job)
    assert [choice.text for choice in done.output] == [text_of_tokens(5)] * choices
    assert (EventType.RESTARTED in {item.type for item in await logs.read(job.id)}) is restarts
    assert [attempt.fingerprint for attempt in done.attempts] == ["fp_steered", fingerprint]
    assert done.fingerprint == fingerprint


async def test_a_restarted_answer_is_counted_once(worker: Worker, store: JobStore, job: Job) -> None:
    """Tokens that still waited for their text at the restart are discarded too."""
    run, call = await worker.start(job)
    await call.tokens(4)  # the fourth has no text yet
    call.restart()
    await call.tokens(5)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    done = await read(store, job)
    assert done.output[0].text == text_of_tokens(6)
    assert done.usage is not None
    assert done.usage.completion_tokens == 6
    archived = await store.archived_log(job.id)
    assert archived is not None
    events = parse_archive(archived)
    restarted = [item.type for item in events].index(EventType.RESTARTED)
    after = "".join(item.delta().text for item in events[restarted:] if item.type is EventType.DELTA)
    assert after == text_of_tokens(6)


async def test_a_tool_call_completes_a_job(worker: Worker, store: JobStore, job: Job) -> None:
    run, call = await worker.start(job)
    call.finish("tool_calls")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert (await read(store, job)).output[0].finish_reason == "tool_calls"


async def test_the_structure_of_a_job_that_is_cancelled_in_the_line_is_never_compiled(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner
) -> None:
    structure = StructuredOutputs(json_schema={"type": "array", "maxItems": 9_000_000})
    request = GenerateRequest(prompt="x", structured_outputs=structure)
    first, cancelled, plain = [
        (await store.insert(NewJob(owner, "m", 3, one)))[0] for one in (request, request, GenerateRequest(prompt="x"))
    ]
    compilations = Compilations(StructureBounds(max_states=10**9), lambda _: None, threads=1)
    async with working("w", workers("w"), logs, compilations=compilations) as worker, compilations.turn(first):
        run = asyncio.create_task(worker.runner.run(cancelled.id))

        async def waits() -> bool:
            return worker.runner.waiting_structures == 1

        await eventually(waits, "the second structure waits")
        other, call = await worker.start(plain)
        call.finish("stop")
        assert await asyncio.wait_for(other, WITHIN_S) is JobStatus.COMPLETED, "jobs without structures do not wait"
        worker.runner.stop(cancelled.id, InterruptReason.CANCELLED)
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.CANCELLED
        assert worker.runner.waiting_structures == 0
        assert cancelled.id not in {one.job_id for one in worker.engine.calls.values()}
