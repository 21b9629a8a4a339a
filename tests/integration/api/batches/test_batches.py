"""Batches with real stores. Each line gets exactly one job and one result, even if drivers die at any point."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.batch import Batch, BatchStatus, Position
from api.batches.driver import BatchDriver
from api.batches.steps import BatchSteps
from api.batches.store import BatchStore
from api.budgets.budgets import Budgets
from api.cache.response_cache import ResponseCache
from api.cache.store import CacheStore
from api.context.window import ContextWindow
from api.files.blobs import LocalBlobs
from api.files.store import FileStore, Purpose, StoredFile
from api.http.members import MemberReader
from api.jobs.admission import Admission
from api.jobs.queue_estimates import QueueEstimates
from api.jobs.queue_store import QueueStore
from api.jobs.service import JobService
from api.keys.changes import KeyChanges
from api.keys.earlier_work import EarlierWork
from api.keys.store import ApiKeyStore
from api.streaming.hub import StreamHub
from shared.config.models.loader import load_registry
from shared.domain.answer_options import KeyOptions, TokenLimits
from shared.domain.errors import FileInUse
from shared.domain.events import Delta, EventType
from shared.domain.job import AttemptOutcome, Choice, Failure, Job, JobStatus, Usage
from shared.domain.ledger import Run
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.result import JobResult, build_result
from shared.postgres.budget_store import BudgetStore
from shared.postgres.budget_windows import BudgetWindowStore
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender, celery_app
from shared.runtime.aio import cancel_and_wait
from tests.conftest import Servers
from tests.support.interrupt import interrupt_at
from tests.support.limits import settlement_of
from tests.support.metrics import api_metrics, worker_metrics
from tests.support.stack import write_models
from tests.support.transcripts import output_of
from tests.support.waiting import eventually
from workers.execution.log_writer import LogBuffer

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
MAX_JOBS = 8
CANCELLED_BY_CLIENT = Failure("cancelled", "The job was cancelled.")


@dataclass
class World:
    """The components that batches need, and a worker controlled by the test."""

    database: AsyncEngine
    folder: Path
    owner: Owner
    files: FileStore
    store: BatchStore
    blobs: LocalBlobs
    steps: BatchSteps
    worker: ClaimStore
    recovery_store: RecoveryStore
    terminator: JobTerminator
    hints: list[Hint] = field(default_factory=list)

    async def upload(self, content: bytes, purpose: Purpose = Purpose.BATCH) -> StoredFile:
        file_id = self.files.new_id()
        async with self.blobs.writing(file_id) as blob:
            await blob.write(content)
        return await self.files.insert(file_id, self.owner, purpose, "in.jsonl", len(content))

    async def batch(self, *prompts: str, content: bytes | None = None, endpoint: str = CHAT) -> Batch:
        """Create a batch whose custom ids are its prompts."""
        file = await self.upload(content if content is not None else b"".join(map(line, prompts)))
        batch = await self.store.insert(self.owner, endpoint, file.id, "24h", 86400, {"a": "b"})
        assert batch is not None
        return batch

    async def reload(self, batch: Batch) -> Batch:
        found = await self.store.get(batch.id, self.owner.project_id)
        assert found is not None
        return found

    async def step(self, batch: Batch) -> Batch:
        await self.steps.take(await self.reload(batch))
        return await self.reload(batch)

    async def advance(self, batch: Batch, status: BatchStatus) -> Batch:
        """Run steps until the batch has a status."""
        for _ in range(5):
            if batch.status is status:
                return batch
            batch = await self.step(batch)
        raise AssertionError(f"{batch.status} is not {status}")

    async def queued(self) -> list[str]:
        async with self.database.connect() as connection:
            found = await connection.execute(text("SELECT id FROM jobs WHERE status = 'queued' ORDER BY batch_line"))
            return list(found.scalars())

    async def start(self, job_id: str) -> Job:
        job = await self.worker.claim(job_id)
        assert job is not None
        return job

    async def finish(self, job: Job, status: JobStatus = JobStatus.COMPLETED, failure: Failure | None = None) -> None:
        assert job.request.messages is not None
        output = output_of(Choice(0, job.request.messages[0].text.upper(), "stop"))
        now = datetime.now(UTC)
        attempts = tuple(replace(attempt, ended_at=now, outcome=status.value) for attempt in job.attempts)
        ending = JobResult(status, now, output, Usage(3, 1, 2), failure, now, attempts, b"")
        ending = replace(ending, cacheable=status is JobStatus.COMPLETED)
        assert await self.worker.finish(job.id, job.attempt, ending)

    async def work(self) -> int:
        """Run all queued jobs. Returns their number."""
        queued = await self.queued()
        for job_id in queued:
            await self.finish(await self.start(job_id))
        return len(queued)

    async def sql(self, statement: str, **values: object) -> None:
        async with self.database.connect() as connection:
            await connection.execute(text(statement), values)

    async def expire(self, batch: Batch) -> None:
        await self.sql("UPDATE batches SET expires_at = now() - interval '1 s' WHERE id = :id", id=batch.id)
        await self.sql("UPDATE jobs SET finish_before = now() - interval '1 s' WHERE batch_id = :id", id=batch.id)

    async def sweep(self) -> None:
        await Sweeper(
            self.recovery_store,
            self.terminator,
            self.hints.append,
            api_metrics(),
            interval_s=1,
            lease_s=1,
            max_attempts=3,
        ).sweep(recover=False)

    async def results(self, batch: Batch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the lines of the output file and of the error file."""
        found = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            content = b""
            if file_id is not None:
                file = await self.files.get(file_id, self.owner.project_id)
                assert file is not None
                assert file.purpose is Purpose.BATCH_OUTPUT
                content = b"".join([chunk async for chunk in self.blobs.read(file_id)])
                assert len(content) == file.bytes
            found.append([json.loads(item) for item in content.splitlines()])
        return found[0], found[1]

    async def lines(self, batch: Batch) -> list[int]:
        async with self.database.connect() as connection:
            found = await connection.execute(
                text("SELECT batch_line FROM jobs WHERE batch_id = :id ORDER BY batch_line"), {"id": batch.id}
            )
            return list(found.scalars())


def line(prompt: str, **body: Any) -> bytes:
    body = {"model": "sim", "messages": [{"role": "user", "content": prompt}], **body}
    return json.dumps({"custom_id": prompt, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


@pytest.fixture
async def world(
    database: AsyncEngine, redis: Redis, logs: EventLog, store: JobStore, owner: Owner, tmp_path: Path, servers: Servers
) -> World:
    return make_world(database, redis, logs, store, owner, tmp_path, servers)


def make_world(
    database: AsyncEngine, redis: Redis, logs: EventLog, store: JobStore, owner: Owner, folder: Path, servers: Servers
) -> World:
    registry = load_registry(write_models(folder / "models.yaml", [{"name": "sim", "engine": "simulated"}]))
    batches, blobs, recovery_store = BatchStore(database), LocalBlobs(folder / "files"), RecoveryStore(database)
    hints: list[Hint] = []
    metrics = api_metrics()
    terminator = JobTerminator(recovery_store, logs, 60, metrics)
    context = ContextWindow(registry)
    budgets = Budgets(BudgetStore(database), BudgetWindowStore(database), registry, context)
    admission = Admission(registry, context, budgets=budgets)
    jobs = JobService(
        admission=admission,
        store=store,
        logs=logs,
        terminator=terminator,
        hints=HintSender(celery_app(servers.redis(15)), redis),
        hub=StreamHub(redis, logs, store, metrics, resync_s=60),
        redis=redis,
        queue_estimates=QueueEstimates(QueueStore(database), registry),
        metrics=metrics,
    )
    steps = BatchSteps(
        registry=registry,
        members=MemberReader(metrics, refuse_unknown=False),
        admission=admission,
        cache=ResponseCache(registry, CacheStore(database), store, metrics),
        earlier_work=EarlierWork(ApiKeyStore(database), cache_s=0),
        store=batches,
        blobs=blobs,
        jobs=jobs,
        settlement=settlement_of(database, redis, registry, metrics),
        terminator=terminator,
        send=hints.append,
        metrics=metrics,
        max_line_bytes=100_000,
        max_jobs=MAX_JOBS,
        retention_s=None,
    )
    worker = ClaimStore(database, "w")
    return World(
        database,
        folder / "files",
        owner,
        FileStore(database),
        batches,
        blobs,
        steps,
        worker,
        recovery_store,
        terminator,
        hints,
    )


async def test_a_batch_writes_results_for_all_its_lines(world: World) -> None:
    batch = await world.batch("one", "two", "three")
    assert batch.status is BatchStatus.VALIDATING
    batch = await world.step(batch)
    assert (batch.status, batch.total, batch.submitted) == (BatchStatus.IN_PROGRESS, 3, 0)
    batch = await world.step(batch)
    assert (batch.submitted, batch.completed) == (3, 0)
    assert [(hint.model, hint.priority) for hint in world.hints] == [("sim", 9)] * 3
    assert [hint.job_id for hint in world.hints] == await world.queued()

    first, second, third = await world.queued()
    await world.finish(await world.start(second), JobStatus.INCOMPLETE)
    await world.finish(await world.start(first), JobStatus.FAILED, Failure("engine_error", "It broke."))
    batch = await world.step(batch)
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.IN_PROGRESS, 1, 1)
    await world.finish(await world.start(third))
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert (batch.total, batch.completed, batch.failed) == (3, 2, 1)
    assert batch.usage is not None
    assert (batch.usage.prompt_tokens, batch.usage.completion_tokens) == (9, 6)

    output, errors = await world.results(batch)
    assert [item["custom_id"] for item in output] == ["two", "three"]
    assert output[0]["id"].startswith("batch_req_")
    assert output[0]["error"] is None
    response = output[0]["response"]
    assert (response["status_code"], response["request_id"]) == (200, second)
    assert response["body"]["object"] == "chat.completion"
    message = response["body"]["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "TWO", "refusal": None, "reasoning": None}
    (error,) = errors
    assert (error["custom_id"], error["error"], error["response"]["status_code"]) == ("one", None, 500)
    assert error["response"]["body"]["error"]["code"] == "engine_error"


CACHED: dict[str, Any] = {"cache": {"ttl": 600}}


async def test_lines_are_answered_from_the_response_cache(world: World) -> None:
    """From earlier batches, and from earlier lines that have ended; the others are run."""
    lines = [line("one", **CACHED), line("two", **CACHED), line("three"), line("four", store=False, **CACHED)]
    content = b"".join(lines)
    earlier = await world.advance(await world.batch(content=content), BatchStatus.IN_PROGRESS)
    earlier = await world.step(earlier)
    assert await world.work() == 4
    earlier = await world.advance(earlier, BatchStatus.COMPLETED)
    later = await world.step(await world.advance(await world.batch(content=content), BatchStatus.IN_PROGRESS))
    assert later.submitted == 4
    world.hints[:] = world.hints[4:]
    assert [hint.job_id for hint in world.hints] == await world.queued()
    assert await world.work() == 2, "a line without the option, and one that must not be stored"
    later = await world.advance(later, BatchStatus.COMPLETED)
    assert (later.completed, later.failed, later.usage) == (4, 0, earlier.usage)
    output, _ = await world.results(later)
    expected, _ = await world.results(earlier)
    answers = [[item["response"]["body"]["choices"] for item in lines] for lines in (output, expected)]
    assert answers[0] == answers[1]
    assert await world.lines(later) == [1, 2, 3, 4]
    async with world.database.connect() as connection:
        query = "SELECT decisions -> 'cache' ->> 'outcome' FROM jobs WHERE batch_id = :id ORDER BY batch_line"
        outcomes = list((await connection.execute(text(query), {"id": later.id})).scalars())
    assert outcomes == ["HIT", "HIT", None, "BYPASS"]


async def test_cached_lines_do_not_wait_for_others(world: World) -> None:
    """They take none of the places of unfinished jobs, so the next step follows at once."""
    content = line("first", **CACHED)
    first = await world.step(await world.advance(await world.batch(content=content), BatchStatus.IN_PROGRESS))
    await world.work()
    await world.advance(first, BatchStatus.COMPLETED)
    same: dict[str, Any] = {"messages": [{"role": "user", "content": "first"}], **CACHED}
    many = b"".join(line(f"p{number}", **same) for number in range(2 * MAX_JOBS + 1))
    batch = await world.advance(await world.batch(content=many), BatchStatus.IN_PROGRESS)
    assert [await world.steps.take(await world.reload(batch)) for _ in range(3)] == [True] * 3
    batch = await world.reload(batch)
    assert (batch.submitted, await world.queued()) == (2 * MAX_JOBS + 1, [])
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert batch.completed == 2 * MAX_JOBS + 1


async def test_a_deleted_answer_is_not_given_to_a_line(world: World, store: JobStore) -> None:
    content = line("one", **CACHED)
    first = await world.step(await world.advance(await world.batch(content=content), BatchStatus.IN_PROGRESS))
    (job_id,) = await world.queued()
    await world.work()
    await world.advance(first, BatchStatus.COMPLETED)
    await store.delete(job_id, world.owner.project_id)
    await world.step(await world.advance(await world.batch(content=content), BatchStatus.IN_PROGRESS))
    assert len(await world.queued()) == 1


async def test_the_number_of_unfinished_jobs_is_limited(world: World) -> None:
    prompts = [f"p{number}" for number in range(3 * MAX_JOBS)]
    batch = await world.advance(await world.batch(*prompts), BatchStatus.IN_PROGRESS)
    for _ in range(3):
        batch = await world.step(batch)
        assert len(await world.queued()) == MAX_JOBS
    for job_id in (await world.queued())[:3]:
        await world.finish(await world.start(job_id))
    batch = await world.step(batch)
    assert len(await world.queued()) == MAX_JOBS
    assert (batch.submitted, batch.completed) == (MAX_JOBS + 3, 3)


async def test_counts_are_correct_while_an_early_job_is_running(world: World) -> None:
    prompts = [f"p{number}" for number in range(3 * MAX_JOBS)]
    batch = await world.step(await world.advance(await world.batch(*prompts), BatchStatus.IN_PROGRESS))
    slow = await world.start((await world.queued())[4])
    while await world.work():
        batch = await world.step(batch)
    assert (batch.completed, batch.status) == (len(prompts) - 1, BatchStatus.IN_PROGRESS)
    await world.finish(slow)
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert batch.completed == len(prompts)


async def test_each_line_runs_once_wherever_a_driver_dies(world: World) -> None:
    """Each step is interrupted at its first await, its second, and so on, until it completes."""
    prompts = [f"p{number}" for number in range(2 * MAX_JOBS + 3)]
    content = b"\n".join(line(prompt) for prompt in prompts)  # with blank lines between
    batch = await world.batch(content=content)
    deaths, at = Counter[BatchStatus](), 1
    while batch.ended_at is None:
        claimed = await world.store.claim(f"driver-{at}", lease_s=0)
        assert claimed is not None
        if await interrupt_at(world.steps.take(claimed), at):
            deaths[claimed.status] += 1
            at += 1
        else:
            at = 1
            await world.work()
        batch = await world.reload(batch)
    assert set(deaths) == {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING}
    assert min(deaths.values()) > 3
    assert batch.status is BatchStatus.COMPLETED
    assert (batch.total, batch.completed, batch.failed) == (len(prompts), len(prompts), 0)
    assert await world.lines(batch) == list(range(1, 2 * len(prompts), 2))
    output, errors = await world.results(batch)
    assert [item["custom_id"] for item in output] == prompts
    assert errors == []
    assert set(os.listdir(world.folder)) == {batch.input_file_id, batch.output_file_id}, (
        "interrupted steps leave no files"
    )


async def test_concurrent_drivers_run_each_line_once(
    world: World,
    database_url: str,
    redis: Redis,
    logs: EventLog,
    store: JobStore,
    servers: Servers,
    tmp_path: Path,
) -> None:
    """Their leases expire immediately, so that all of them run every step."""
    prompts = [f"p{number}" for number in range(6 * MAX_JOBS)]

    async def drive(other: World) -> None:
        while (claimed := await other.store.claim("all", lease_s=0)) is not None:
            await other.steps.take(claimed)

    async with contextlib.AsyncExitStack() as stack:
        batch = await world.batch(*prompts)
        drivers = []
        for _ in range(3):
            engine = connect(database_url)
            stack.push_async_callback(engine.dispose)
            other = make_world(engine, redis, logs, store, world.owner, tmp_path, servers)
            drivers.append(asyncio.create_task(drive(other)))

        async def ended() -> bool:
            await world.work()
            return all(driver.done() for driver in drivers)

        await eventually(ended, "the batch ends")
        await asyncio.gather(*drivers)
    batch = await world.reload(batch)
    assert (batch.status, batch.completed) == (BatchStatus.COMPLETED, len(prompts))
    assert await world.lines(batch) == list(range(1, len(prompts) + 1))
    output, _ = await world.results(batch)
    assert [item["custom_id"] for item in output] == prompts


async def test_a_stale_step_changes_nothing(world: World) -> None:
    batch = await world.advance(await world.batch("one", "two"), BatchStatus.IN_PROGRESS)
    await world.steps.take(batch)
    before = await world.lines(batch)
    await world.steps.take(batch)
    assert await world.lines(batch) == before == [1, 2]
    await world.work()
    stale = await world.advance(batch, BatchStatus.FINALIZING)
    done = await world.advance(batch, BatchStatus.COMPLETED)
    await world.steps.take(stale)
    assert await world.reload(batch) == done
    assert (await world.results(done))[0]


async def test_the_database_rejects_a_second_job_for_a_line(world: World) -> None:
    batch = await world.step(await world.advance(await world.batch("one", "two"), BatchStatus.IN_PROGRESS))
    with pytest.raises(IntegrityError):
        await world.sql("UPDATE jobs SET batch_line = 1 WHERE batch_id = :id", id=batch.id)


async def test_a_leased_batch_can_be_claimed_only_after_the_lease(world: World) -> None:
    batch = await world.batch("one")
    claimed = await world.store.claim("a", lease_s=60)
    assert claimed is not None
    assert claimed.id == batch.id
    assert await world.store.claim("b", lease_s=60) is None
    assert not await world.store.reschedule(batch.id, "b", 0)
    assert await world.store.reschedule(batch.id, "a", 0)
    assert await world.store.claim("b", lease_s=60) is not None
    assert not await world.store.reschedule(batch.id, "a", 60), "b has claimed it"


async def test_a_batch_that_cannot_be_read_does_not_stop_the_driver(world: World) -> None:
    """A newer version may have given it a status that this one does not know."""
    unreadable, other = await world.batch("one"), await world.batch("two")
    await world.sql(
        "UPDATE batches SET status = 'paused', due_at = due_at - interval '1 h' WHERE id = :id", id=unreadable.id
    )
    driver = BatchDriver(world.store, world.steps, poll_s=0.01, lease_s=60)
    running = asyncio.create_task(driver.run())
    try:

        async def begun() -> bool:
            return (await world.reload(other)).status is not BatchStatus.VALIDATING

        await eventually(begun, "the other batch starts")
        assert not running.done()
    finally:
        await cancel_and_wait(running)


async def test_a_batch_with_invalid_lines_fails_with_their_numbers(world: World) -> None:
    batch = await world.batch(content=line("one") + b"\noops\n" + line("one") + line("two", temperature=9))
    batch = await world.step(batch)
    assert batch.status is BatchStatus.FAILED
    assert [(error.line, error.code, error.param) for error in batch.errors] == [
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_request", "body.temperature"),
    ]
    assert await world.lines(batch) == []


async def test_a_batch_whose_input_content_is_missing_fails(world: World) -> None:
    batch = await world.batch("one")
    await world.blobs.delete(batch.input_file_id)
    batch = await world.step(batch)
    assert (batch.status, batch.errors[0].code) == (BatchStatus.FAILED, "input_file_missing")


async def test_a_cancel_ends_queued_jobs_and_lets_running_jobs_finish(world: World) -> None:
    prompts = [f"p{number}" for number in range(MAX_JOBS + 2)]
    batch = await world.step(await world.advance(await world.batch(*prompts), BatchStatus.IN_PROGRESS))
    first, second, *_ = await world.queued()
    await world.finish(await world.start(first))
    running = await world.start(second)
    assert await world.store.cancel(batch.id)
    batch = await world.step(batch)
    assert batch.status is BatchStatus.CANCELLING
    assert await world.queued() == []
    await world.finish(running)
    batch = await world.step(batch)
    assert batch.status is BatchStatus.CANCELLED
    assert (batch.total, batch.completed, batch.failed) == (len(prompts), 2, len(prompts) - 2)
    output, errors = await world.results(batch)
    assert [item["custom_id"] for item in output] == prompts[:2]
    assert [item["custom_id"] for item in errors] == prompts[2:]
    assert {(item["response"], item["error"]["code"]) for item in errors} == {(None, "batch_cancelled")}
    assert await world.lines(batch) == list(range(1, MAX_JOBS + 1))
    assert not await world.store.cancel(batch.id)


async def test_running_jobs_are_cancelled_after_the_grace_period(world: World) -> None:
    batch = await world.step(await world.advance(await world.batch("one"), BatchStatus.IN_PROGRESS))
    job = await world.start((await world.queued())[0])
    await world.store.cancel(batch.id)
    await world.step(batch)
    assert (await world.worker.list_claims())[0].status is JobStatus.IN_PROGRESS
    await world.sql("UPDATE batches SET cancelling_at = now() - interval '11 min'")
    await world.step(batch)
    assert (await world.worker.list_claims())[0].status is JobStatus.CANCELLING
    await world.finish(job, JobStatus.CANCELLED, CANCELLED_BY_CLIENT)
    batch = await world.step(batch)
    assert (batch.status, batch.failed) == (BatchStatus.CANCELLED, 1)


async def test_a_batch_cancelled_during_validation_has_no_requests(world: World) -> None:
    batch = await world.batch(content=b"never read")
    await world.store.cancel(batch.id)
    await world.steps.take(batch)  # by a driver that claimed it before the cancel
    batch = await world.step(batch)
    assert (batch.status, batch.total) == (BatchStatus.CANCELLED, 0)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_requests_that_have_not_ended_in_the_window_expire(world: World) -> None:
    prompts = [f"p{number}" for number in range(MAX_JOBS + 2)]
    batch = await world.step(await world.advance(await world.batch(*prompts), BatchStatus.IN_PROGRESS))
    await world.finish(await world.start((await world.queued())[0]))
    await world.expire(batch)
    batch = await world.step(batch)
    assert batch.status is BatchStatus.FINALIZING
    batch = await world.step(batch)
    assert batch.status is BatchStatus.FINALIZING, "jobs have not ended"
    await world.sweep()
    batch = await world.step(batch)
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.EXPIRED, 1, len(prompts) - 1)
    output, errors = await world.results(batch)
    assert [item["custom_id"] for item in output] == prompts[:1]
    assert [item["custom_id"] for item in errors] == prompts[1:]
    assert {item["error"]["code"] for item in errors} == {"batch_expired"}


async def test_a_batch_whose_jobs_ended_in_time_is_completed_after_the_window(world: World) -> None:
    batch = await world.step(await world.advance(await world.batch("one"), BatchStatus.IN_PROGRESS))
    await world.work()
    await world.sql("UPDATE batches SET expires_at = now() - interval '1 s'")
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert batch.completed == 1


async def test_no_line_is_submitted_after_a_cancel_or_the_window(world: World) -> None:
    stale = await world.advance(await world.batch("one"), BatchStatus.IN_PROGRESS)
    await world.store.cancel(stale.id)
    await world.steps.take(stale)
    assert await world.lines(stale) == []
    stale = await world.advance(await world.batch("one"), BatchStatus.IN_PROGRESS)
    await world.expire(stale)
    await world.steps.take(replace(stale, expired=False))
    assert await world.lines(stale) == []


async def test_jobs_cancelled_or_deleted_by_the_client_are_errors(world: World) -> None:
    batch = await world.step(await world.advance(await world.batch("one", "two"), BatchStatus.IN_PROGRESS))
    first, second = await world.queued()
    await world.finish(await world.start(first), JobStatus.CANCELLED, CANCELLED_BY_CLIENT)
    await world.finish(await world.start(second))
    assert await JobStore(world.database).delete(second, world.owner.project_id)
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    _, errors = await world.results(batch)
    assert [item["response"]["status_code"] for item in errors] == [409, 404]


async def test_a_line_rejected_after_validation_is_an_error(world: World) -> None:
    """For example after an update that validates more strictly."""
    batch = await world.advance(await world.batch("one", "two"), BatchStatus.IN_PROGRESS)
    async with world.blobs.writing(batch.input_file_id) as blob:
        await blob.write(line("one", temperature=9) + line("two"))
    batch = await world.step(batch)
    assert batch.submitted == 2
    await world.work()
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert (batch.completed, batch.failed) == (1, 1)
    _, (error,) = await world.results(batch)
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["param"] == "temperature"


async def test_a_line_that_does_not_fit_the_context_is_an_error_without_a_job(world: World) -> None:
    content = line("one", max_tokens=100_000) + line("two")
    batch = await world.step(await world.advance(await world.batch(content=content), BatchStatus.IN_PROGRESS))
    assert await world.lines(batch) == [2]
    assert batch.submitted == 2
    await world.work()
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert (batch.completed, batch.failed) == (1, 1)
    (output,), (error,) = await world.results(batch)
    assert (output["custom_id"], error["custom_id"], error["error"]) == ("two", "one", None)
    assert error["response"]["status_code"] == 400
    failure = error["response"]["body"]["error"]
    assert (failure["type"], failure["param"]) == ("invalid_request_error", "max_tokens")
    assert "this model's context is 8192 tokens" in failure["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "the mill", "max_output_tokens": 100_000}, "max_output_tokens"),
        ({"input": "mill " * 9_000}, "input"),
    ],
    ids=["max_output_tokens", "input"],
)
async def test_the_error_of_a_response_line_names_its_own_parameters(
    world: World, body: dict[str, Any], param: str
) -> None:
    item = {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": {"model": "sim", **body}}
    content = json.dumps(item).encode()
    batch = await world.advance(await world.batch(content=content, endpoint=RESPONSES), BatchStatus.IN_PROGRESS)
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    _, (error,) = await world.results(batch)
    assert error["response"]["status_code"] == 400
    failure = error["response"]["body"]["error"]
    assert failure["param"] == param
    assert failure["message"].startswith(f"{param}: this model's context is 8192 tokens")


async def test_the_limits_of_the_key_apply_to_lines(world: World) -> None:
    async def limit(on_exceed: Literal["clamp", "reject"]) -> None:
        options = KeyOptions(token_limits=TokenLimits(default_output=20, max_output=50, on_exceed=on_exceed))
        await ApiKeyStore(world.database).change(world.owner.key_id, KeyChanges(options=lambda _: options))

    async def run(content: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        batch = await world.advance(await world.batch(content=content), BatchStatus.IN_PROGRESS)
        batch = await world.step(batch)
        await world.work()
        return await world.results(await world.advance(batch, BatchStatus.COMPLETED))

    await limit("clamp")
    output, _ = await run(line("default") + line("clamped", max_tokens=60) + line("within", max_tokens=30))
    assert [item.get("x-headrace-max-tokens") for item in output] == ["20", "50", None]
    await limit("reject")
    _, errors = await run(line("old", max_tokens=60) + line("new", max_completion_tokens=60) + line("default"))
    failures = [item["response"]["body"]["error"] for item in errors]
    assert [failure["param"] for failure in failures] == ["max_tokens", "max_completion_tokens"]
    assert failures[1]["message"].startswith("max_completion_tokens: this API key allows at most 50 output tokens")


async def test_a_line_whose_model_has_been_removed_is_an_error(world: World) -> None:
    batch = await world.advance(await world.batch("one", "two"), BatchStatus.IN_PROGRESS)
    async with world.blobs.writing(batch.input_file_id) as blob:
        await blob.write(line("one", model="removed") + line("two"))
    batch = await world.step(batch)
    await world.work()
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert (batch.completed, batch.failed) == (1, 1)
    _, (error,) = await world.results(batch)
    assert error["response"]["status_code"] == 404
    assert error["response"]["body"]["error"]["code"] == "model_not_found"


async def test_the_input_of_an_unfinished_batch_cannot_be_deleted(world: World) -> None:
    batch = await world.batch("one")
    with pytest.raises(FileInUse):
        await world.files.delete(batch.input_file_id, world.owner.project_id)
    await world.store.cancel(batch.id)
    await world.advance(batch, BatchStatus.CANCELLED)
    assert await world.files.delete(batch.input_file_id, world.owner.project_id)
    assert await world.store.insert(world.owner, CHAT, batch.input_file_id, "24h", 60, None) is None


async def test_the_position_of_the_next_line_is_stored(world: World) -> None:
    batch = await world.batch("one", "two")
    assert batch.next == Position(1, 0)
    batch = await world.step(await world.advance(batch, BatchStatus.IN_PROGRESS))
    assert batch.next == Position(3, len(line("one") + line("two")))


async def test_a_driver_retries_a_step_after_an_outage(world: World) -> None:
    batch = await world.batch("one")
    blob = world.folder / batch.input_file_id
    content = blob.read_bytes()
    blob.unlink()
    blob.mkdir()  # an I/O error, not a missing file
    driver = BatchDriver(world.store, world.steps, poll_s=0.02, lease_s=6)
    running = asyncio.create_task(driver.run())

    async def rescheduled() -> bool:
        async with world.database.connect() as connection:
            query = text("SELECT count(*) FROM batches WHERE driver IS NOT NULL AND due_at < now() + interval '3 s'")
            return bool((await connection.execute(query)).scalar_one())

    async def ended() -> bool:
        await world.work()
        return (await world.reload(batch)).ended_at is not None

    await eventually(rescheduled, "the driver has rescheduled the batch")
    blob.rmdir()
    blob.write_bytes(content)
    await eventually(ended, "the batch ends")
    running.cancel()
    await asyncio.wait((running,))
    assert (await world.reload(batch)).status is BatchStatus.COMPLETED


async def test_a_driver_that_is_woken_and_cancelled_at_once_stops(world: World) -> None:
    # With asyncio.wait_for on Python 3.11, it missed the cancel, and the process did not exit.
    driver = BatchDriver(world.store, world.steps, poll_s=60, lease_s=60)
    checked = asyncio.Event()
    claim = world.store.claim

    async def claiming(name: str, lease_s: float) -> Batch | None:
        found = await claim(name, lease_s)
        checked.set()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.store, "claim", claiming)
        running = asyncio.create_task(driver.run())
        await asyncio.wait_for(checked.wait(), 20)
        await asyncio.sleep(0)
        driver.wake()
        running.cancel()
        done, _ = await asyncio.wait((running,), timeout=20)
    assert done
    assert running.cancelled()


async def test_a_response_is_built_from_the_log_of_its_job(world: World) -> None:
    body = {"model": "sim", "input": "the mill", "max_output_tokens": 9}
    content = json.dumps({"custom_id": "a", "method": "POST", "url": RESPONSES, "body": body}).encode()
    batch = await world.batch(content=content, endpoint=RESPONSES)
    batch = await world.step(await world.advance(batch, BatchStatus.IN_PROGRESS))
    (job_id,) = await world.queued()
    job = await world.start(job_id)
    delta = Delta(0, "It turns.", (1, 2), "stop")
    log = LogBuffer(job.id, job.attempt, worker_metrics())
    log.event(EventType.STARTED, {"attempt": 1, "worker": "w"})
    log.delta(delta)
    log.seal()
    ending, _ = await build_result(
        job,
        log.events,
        log.seq + 1,
        status=JobStatus.COMPLETED,
        output=(Choice(0, delta.text, "stop"),),
        usage=Usage(3, 1, 2),
        failure=None,
        first_token_at=datetime.now(UTC),
        finished_at=datetime.now(UTC),
        outcome=AttemptOutcome.COMPLETED,
        runs={1: Run(2)},
    )
    assert await world.worker.finish(job.id, job.attempt, ending)
    (output,), errors = await world.results(await world.advance(batch, BatchStatus.COMPLETED))
    assert errors == []
    response = output["response"]["body"]
    assert (response["id"], response["status"]) == (f"resp_{job_id.removeprefix('job_')}", "completed")
    assert [item["content"][0]["text"] for item in response["output"]] == ["It turns."]
    assert response["usage"]["total_tokens"] == 5
