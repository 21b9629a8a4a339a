"""No interleaving of the actions of workers, sweepers and clients with outages breaks a job's invariants.

Hypothesis generates the interleavings and runs them on real PostgreSQL and Redis servers with the real runner, lease,
sweeper, cancel and streams; only the engine is controlled by the test, token by token. A worker acts only when a rule
makes it act. Otherwise it is like a stopped process, and what it does after its lease has expired, it does as a zombie.

CI runs the same examples each time. To search for new ones:

    make test-long ARGS="-k state_machine"
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context.window import ContextWindow
from api.jobs.admission import Admission
from api.jobs.queue_estimates import QueueEstimates
from api.jobs.queue_store import QueueStore
from api.jobs.service import JobService
from api.keys.principal import Principal
from api.streaming.hub import StreamHub
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.decisions import NO_DECISIONS, Decisions, RouteDecision
from shared.domain.errors import ErrorCode
from shared.domain.events import Event, EventType, parse_archive, seq_before
from shared.domain.job import RUNNING, Job, JobStatus
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.fallbacks import Fallbacks
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis import job_queue
from shared.redis import keys as redis_keys
from shared.redis.carried_requests import CarriedRequests
from shared.redis.conversation_models import ConversationModels
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender, celery_app
from shared.runtime.aio import cancel_and_wait
from tests.conftest import TEST_REDIS_DB, Servers
from tests.support.database import make_owner
from tests.support.examples import LONG, example_count
from tests.support.interleavings import Interleavings
from tests.support.ledger import check_entries, dollars, set_price
from tests.support.metrics import api_metrics, worker_metrics
from tests.support.request_log import check_logged
from tests.support.steered_engine import IDS_PER_ATTEMPT, Call, SteeredEngine, text_of_tokens
from tests.support.transcripts import transcript_of
from workers.engines.base import EngineError
from workers.execution.attempts import early_start
from workers.execution.attempts.context import AttemptContext, InterruptReason
from workers.execution.attempts.early_start import EarlyStarts
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.settings import WorkerSettings
from workers.supervision.heartbeat import Heartbeat

W = TypeVar("W", bound="World")

MODEL = "m"
# The model that takes over the jobs of a route.
FALLBACK = "n"
WORKERS = 3
# Maximum number of jobs that have not ended.
JOBS = 3
MAX_ATTEMPTS = 3
LOG_TTL_S = 3600
# Leases expire only if a rule changes their row.
LEASE_S = 600
WITHIN_S = 10.0
LONG_S = 7200
DIED = ("worker_lost", "engine_lost")
# Jobs with their entries of the ledger, and their rows of the request log.
_JOBS = """
    SELECT jobs.*, ARRAY(SELECT to_json(e) FROM usage_events e WHERE e.job_id = jobs.id ORDER BY attempt) AS ledger,
        ARRAY(SELECT to_json(l) FROM request_log l WHERE l.job_id = jobs.id) AS logged
    FROM jobs ORDER BY id
"""
ROUTED = Decisions(route=RouteDecision(route="auto", rule="r", fallbacks=(FALLBACK,)))

SETTINGS = settings(
    example_count(30, long=2000),
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

a_job = st.integers(0, JOBS)
a_worker = st.integers(0, WORKERS - 1)
a_run = st.integers(0, JOBS * WORKERS - 1)
a_zombie = st.sampled_from([0, 1, 3, 5])


@dataclass(eq=False)
class Reader:
    """A client of the native stream, and the events that it received over all its connections."""

    seen: list[Event] = field(default_factory=list)
    following: asyncio.Task[None] | None = None

    @property
    def cursor(self) -> int:
        return self.seen[-1].seq if self.seen else 0


class Worker:
    """One worker process: runner, lease and log writer, with an engine that the test controls."""

    def __init__(
        self,
        number: int,
        database: AsyncEngine,
        redis: Redis,
        worker_settings: WorkerSettings,
        early_starts: EarlyStarts,
    ) -> None:
        self.name = f"worker-{number}"
        self.store = store = ClaimStore(database, self.name)
        self.engine = SteeredEngine()
        self.flushes = True
        self.runs: dict[tuple[str, int], asyncio.Task[JobStatus | None]] = {}
        logs = EventLog(redis)
        self.log_writer = LogWriter(logs, store.list_claims, late_s=0)
        context = AttemptContext(
            worker=self.name,
            engine=self.engine,
            store=store,
            logs=logs,
            log_writer=self.log_writer,
            log_ttl_s=LOG_TTL_S,
            max_attempts=MAX_ATTEMPTS,
            send=lambda _: None,
            on_engine_death=lambda: None,
            metrics=worker_metrics(),
            starts_early=True,
        )
        # A worker that isolates no suspects: each message leads to a run at once.
        self.runner = Runner(context, SlotPool(self.engine.slots, yields=False), early_starts=early_starts)
        self.heartbeat = Heartbeat(self.runner, self.engine, store, MODEL, worker_settings)
        self._flushing = asyncio.create_task(self.log_writer.run())

    async def deliver(self, job_id: str) -> Call | None:
        """Deliver a message for a job. Returns its call once it waits for tokens, and the job is claimed; None if the
        job was not run."""
        next_call = self.engine.next_call(job_id)
        run = asyncio.create_task(self.runner.run(job_id))
        while not run.done():
            either: set[asyncio.Future[Any]] = {next_call, run}
            await asyncio.wait(either, timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
            if not next_call.done():
                break
            call = next_call.result()
            # If the job was started before it was claimed, that may have been in vain, and the next call is the claimed
            # one.
            next_call = self.engine.next_call(job_id)
            deadline = time.monotonic() + WITHIN_S
            while not (call.ended.is_set() or self._runs(call)):
                assert time.monotonic() < deadline, "a start before the claim is continued or thrown away"
                await asyncio.sleep(0)  # milliseconds: polls would take most of the test's time
            if self._runs(call):
                self.engine.discard_next_call(job_id)
                self.runs[job_id, call.attempt] = run
                await self.flush()
                return call
        assert run.done(), "a message either starts a run or is dropped"
        self.engine.discard_next_call(job_id)
        run.result()
        await self.flush()
        return None

    def _runs(self, call: Call) -> bool:
        return (call.job_id, call.attempt) in self.runner.claimed_before(math.inf)

    async def wait_ended(self, call: Call, why: str) -> None:
        """Wait for the end of a run that must end, for the given reason."""
        run = self.runs[call.job_id, call.attempt]
        done, _ = await asyncio.wait({run}, timeout=WITHIN_S)
        assert done, f"{self.name}: a run does not end: {why}"
        run.result()
        await self.flush()

    async def flush(self) -> None:
        if self.flushes:
            await self.log_writer.drain(WITHIN_S)

    async def hold_flushes(self) -> None:
        """Stop writing to Redis."""
        if self.flushes:
            await self.flush()
            await cancel_and_wait(self._flushing)
            self.flushes = False

    async def resume_flushes(self) -> None:
        if not self.flushes:
            self._flushing = asyncio.create_task(self.log_writer.run())
            self.flushes = True
            await self.flush()

    async def kill(self) -> None:
        """`kill -9`: stop all tasks of the process."""
        calls = [call.task for call in self.engine.calls.values() if call.task is not None]
        await cancel_and_wait(*self.runs.values(), *calls, self._flushing)


class World:
    """API, workers and servers, with their invariants. Runs on one event loop."""

    def __init__(self, database: AsyncEngine, redis: Redis, owner: Owner, worker_settings: WorkerSettings) -> None:
        self.database = database
        self.redis = redis
        self.owner = owner
        self.worker_settings = worker_settings
        self.store = JobStore(database)
        self.logs = EventLog(redis)
        metrics = api_metrics()
        self.hub = StreamHub(redis, self.logs, self.store, metrics, resync_s=0.2)
        recovery_store = RecoveryStore(database)
        fallbacks = Fallbacks(recovery_store, self.logs, ConversationModels(redis), lambda _: None, metrics)
        # The messages of jobs that are released when a job ends.
        self.sent: list[Hint] = []
        terminator = JobTerminator(
            recovery_store, self.logs, LOG_TTL_S, metrics, send=self.sent.append, fallbacks=fallbacks
        )
        self.hints = HintSender(celery_app("redis://127.0.0.1:1/0"), redis)
        # They all know the salt of the project, which a process learns from its first claim.
        self.early_starts = EarlyStarts(CarriedRequests(redis), MODEL)
        registry = Registry({MODEL: SimulatedModel(name=MODEL, engine="simulated")})
        self.service = JobService(
            admission=Admission(registry, ContextWindow(registry)),
            store=self.store,
            logs=self.logs,
            terminator=terminator,
            hints=self.hints,
            hub=self.hub,
            redis=redis,
            queue_estimates=QueueEstimates(QueueStore(database), registry),
            metrics=metrics,
            starts_early=lambda _: True,
        )
        self.sweeper = Sweeper(
            recovery_store,
            terminator,
            lambda _: None,
            metrics,
            interval_s=1,
            lease_s=LEASE_S,
            max_attempts=MAX_ATTEMPTS,
            fallbacks=fallbacks,
        )
        self.jobs: list[str] = []
        self.by_key: dict[str, str] = {}
        self.readers: dict[str, Reader] = {}
        self.ends: dict[str, Row[Any]] = {}
        self.cancelling: set[str] = set()
        self.claimed_by: dict[tuple[str, int], str] = {}
        self.flushed = False
        self._live = asyncio.create_task(self.hub.run())
        self._started = 0
        self.workers = [self._worker() for _ in range(WORKERS)]

    def _worker(self) -> Worker:
        self._started += 1
        return Worker(self._started, self.database, self.redis, self.worker_settings, self.early_starts)

    @property
    def open_jobs(self) -> list[str]:
        return [job_id for job_id in self.jobs if job_id not in self.ends]

    def job(self, number: int) -> str:
        """Choose a job that has not ended, or the one that ended last."""
        jobs = [*self.open_jobs, *list(self.ends)[-1:]]
        return jobs[number % len(jobs)]

    async def run(self, number: int) -> tuple[Worker, Call]:
        """Choose a running call, whether or not it still owns its job; without one, start a new job."""
        runs = [(worker, call) for worker in self.workers for call in worker.engine.calls.values()]
        if runs:
            return runs[number % len(runs)]
        await self.submit(1, None, None, routed=number % 2 == 0)
        worker = self.workers[number % WORKERS]
        call = await self.deliver(worker, self.jobs[-1], 1 + number % 5)
        assert call is not None, "a new job is claimed"
        return worker, call

    async def row(self, job_id: str) -> Row[Any]:
        (row,) = await self._rows("SELECT * FROM jobs WHERE id = :id", id=job_id)
        return row

    async def _rows(self, sql: str, **values: object) -> list[Row[Any]]:
        async with self.database.connect() as connection:
            return list(await connection.execute(text(sql), values))

    async def _change(self, sql: str, **values: object) -> None:
        async with self.database.begin() as connection:
            await connection.execute(text(sql), values)

    # Actions

    async def submit(
        self, choices: int, key: str | None, late: str | None, *, routed: bool = False, carried: bool = True
    ) -> None:
        """Submit a job; if its request is `carried`, the first worker that gets a message may start it early."""
        request = GenerateRequest(prompt="x", sampling=Sampling(n=choices))
        new = NewJob(
            owner=self.owner,
            model=MODEL,
            priority=3,
            request=request,
            start_within_s=LEASE_S if late == "start" else None,
            finish_within_s=LEASE_S if late == "finish" else None,
            decisions=ROUTED if routed else NO_DECISIONS,
        )
        # With a key, submit twice at the same time, as two API processes could.
        idempotency = Idempotency(key, "digest") if key else None
        submits = [self.service.submit(Principal.of(self.owner), new, idempotency) for _ in range(2 if key else 1)]
        ids = {job.id for job, _ in await asyncio.gather(*submits)}
        assert len(ids) == 1, "one idempotency key, one job"
        if carried:
            await self.hints.flush()
        (job_id,) = ids
        if key is not None:
            assert self.by_key.setdefault(key, job_id) == job_id
        if job_id not in self.jobs:
            self.jobs.append(job_id)
            self.readers[job_id] = Reader()
            self._follow(job_id)

    async def deliver(self, worker: Worker, job_id: str, count: int = 0) -> Call | None:
        """Deliver a message; if it starts a run, generate `count` tokens."""
        older = [call for call in worker.engine.calls.values() if call.job_id == job_id]
        call = await worker.deliver(job_id)
        if call is None:
            return None
        holder = self.claimed_by.setdefault((job_id, call.attempt), worker.name)
        assert holder == worker.name, "an attempt has one worker"
        assert call.prior == text_of_tokens(call.generated), "an attempt resumes at the end of the text"
        for overtaken in older:
            await worker.wait_ended(overtaken, "the same worker runs a later attempt")
        if (job_id, call.attempt) in worker.engine.calls:
            await self.tokens(worker, call, count)
        return call

    async def deliver_to_all(self, job_id: str, *, sweeping: bool) -> None:
        """Deliver a message to every worker at once. While it is `sweeping`, a claim whose worker's lease has expired
        may be taken back at once, and another worker's claim succeed too, as the next attempt."""
        calls = await asyncio.gather(*(worker.deliver(job_id) for worker in self.workers))
        claimed = [(worker, call) for worker, call in zip(self.workers, calls, strict=True) if call is not None]
        assert len({call.attempt for _, call in claimed}) == len(claimed), "an attempt is claimed once"
        assert len(claimed) <= 1 or sweeping, "one claim succeeds"
        for worker, call in claimed:
            assert (job_id, call.attempt) not in self.claimed_by
            self.claimed_by[job_id, call.attempt] = worker.name

    async def tokens(self, worker: Worker, call: Call, count: int) -> None:
        await call.tokens(count)
        await worker.flush()

    async def finish(self, worker: Worker, call: Call, reason: str) -> None:
        call.finish(reason)
        await worker.wait_ended(call, "its engine has finished")

    async def fail(self, worker: Worker, call: Call) -> None:
        call.fail(EngineError("it failed"))
        await worker.wait_ended(call, "its engine failed")

    async def fail_at_once(self, worker: Worker, job_id: str) -> None:
        """Deliver a message; if it starts a run, that fails before another token."""
        if (call := await self.deliver(worker, job_id)) is not None and not call.ended.is_set():
            await self.fail(worker, call)

    async def stop(self, worker: Worker, call: Call, why: InterruptReason) -> None:
        worker.runner.stop(call.job_id, why, call.attempt)
        await worker.wait_ended(call, f"{why} was requested")

    async def engine_dies(self, worker: Worker) -> None:
        calls = list(worker.engine.calls.values())
        worker.engine.die()
        for call in calls:
            await worker.wait_ended(call, "its engine died")
        await worker.engine.start()

    async def heartbeat(self, worker: Worker) -> None:
        claims = {
            (row.id, row.attempt): row.status
            for row in await self._rows("SELECT id, attempt, status FROM jobs WHERE worker = :w", w=worker.name)
        }
        stopped = [call for key, call in worker.engine.calls.items() if claims.get(key) != JobStatus.IN_PROGRESS]
        await worker.heartbeat.renew()
        for call in stopped:
            await worker.wait_ended(call, "its row has another owner, or is being cancelled")

    async def expire_lease(self, worker: Worker) -> None:
        await self._change(
            "UPDATE workers SET lease_expires_at = now() - interval '1 second' WHERE id = :id", id=worker.name
        )

    async def kill(self, number: int) -> None:
        worker = self.workers[number]
        await worker.kill()
        await self.expire_lease(worker)
        self.workers[number] = self._worker()
        await self.workers[number].heartbeat.renew()

    async def sweep(self) -> None:
        await self.sweeper.sweep()

    async def check_swept(self) -> None:
        """A second sweep would have nothing to do."""
        remaining = await self._rows(
            "SELECT id, status, deaths FROM jobs WHERE status IN ('in_progress', 'cancelling')"
            " AND worker NOT IN (SELECT id FROM workers WHERE lease_expires_at > now())"
            " OR status = 'queued' AND (finish_before < now() OR start_before < now() AND started_at IS NULL)"
        )
        assert remaining == []

    async def cancel(self, job_id: str) -> None:
        job = await self.service.cancel(job_id, self.owner.project_id)
        assert job.status.terminal or job.status is JobStatus.CANCELLING

    async def lose_claim_response(self, worker: Worker, job_id: str) -> None:
        """The claim is committed, but the worker never receives the response; its heartbeats release the claim."""
        claimed = await worker.store.claim(job_id)
        if claimed is None:
            return
        self.claimed_by[job_id, claimed.attempt] = worker.name
        await self.heartbeat(worker)
        await self.heartbeat(worker)
        assert (await self.row(job_id)).worker != worker.name, "the claim is released"

    async def pass_deadline(self, job_id: str) -> None:
        await self._change(
            "UPDATE jobs SET start_before = CASE WHEN start_before IS NULL THEN NULL ELSE now() - interval '1 s' END,"
            " finish_before = CASE WHEN finish_before IS NULL THEN NULL ELSE now() - interval '1 s' END"
            " WHERE id = :id AND finished_at IS NULL",
            id=job_id,
        )

    async def wipe_redis(self) -> None:
        await self.redis.flushdb()
        self.flushed = True

    async def reconnect(self, job_id: str) -> None:
        """Close the reader's connection; the reader resumes after the last event that it received."""
        reader = self.readers[job_id]
        if reader.following is None or reader.following.done():
            return
        await cancel_and_wait(reader.following)
        job = await self.service.get(job_id, self.owner.project_id)
        if await self.service.check_cursor(job, reader.cursor, "starting_after"):
            self._follow(job_id)
        else:
            reader.following = None  # it had already received the last event

    def _follow(self, job_id: str) -> None:
        reader = self.readers[job_id]

        async def follow() -> None:
            async with contextlib.aclosing(self.service.follow(job_id, reader.cursor)) as batches:  # type: ignore[type-var]
                async for events in batches:
                    reader.seen += events

        reader.following = asyncio.create_task(follow())

    # Invariants

    async def check(self) -> None:
        """Check the invariants, after each step."""
        for worker in self.workers:
            assert worker.engine.calls.keys() <= worker.runs.keys(), "what was started in vain is aborted"
        for row in await self._rows(_JOBS):
            check_logged(row, row.logged)
            history = [item["outcome"] for item in row.attempts]
            numbers = [item["number"] for item in row.attempts]
            running = JobStatus(row.status) in RUNNING
            assert numbers == list(range(1, row.attempt + (0 if running else 1))), "attempts are numbered"
            moves = [position for position, outcome in enumerate(history, 1) if outcome == "rerouted"]
            self._check_moves(row, moves)
            deaths = sum(outcome in DIED for outcome in history[moves[-1] if moves else 0 :])
            assert deaths <= MAX_ATTEMPTS + row.exposures
            assert running == (row.worker is not None)
            assert row.id not in self.cancelling or row.status == "cancelling" or JobStatus(row.status).terminal, (
                "a job that is being cancelled never runs again"
            )
            if row.status == JobStatus.CANCELLING:
                self.cancelling.add(row.id)
            if JobStatus(row.status).terminal:
                self._check_end(row, deaths)
            else:
                assert deaths == row.deaths + row.exposures
                assert row.deaths < MAX_ATTEMPTS
                assert (row.finished_at, row.output, row.log, row.error_code) == (None,) * 4
            await self._check_log(row)
        for job_id, reader in self.readers.items():
            self._check_ascending(reader.seen)
            assert not any(event.type.terminal for event in reader.seen[:-1])
            assert job_id in self.jobs

    def _check_moves(self, row: Row[Any], moves: list[int]) -> None:
        """A job moves to its fallback once at most, and not after a token."""
        if row.model == MODEL:
            assert moves == []
            return
        assert len(moves) <= 1
        assert row.model == FALLBACK
        assert row.decisions["route"] == {"route": "auto", "rule": "r", "tried": [MODEL], "left": [MODEL]}
        assert all(item["tokens"] == 0 for item in row.attempts[: moves[-1] if moves else 0])

    def _check_end(self, row: Row[Any], deaths: int) -> None:
        """An ended job never changes, and its archive and output agree."""
        first = self.ends.setdefault(row.id, row)
        if first is not row:
            assert first == row, "exactly one end"
            return
        self._check_ledger(row)
        events = parse_archive(row.log)
        self._check_ascending(events)
        assert events[-1].type.value == row.status
        assert not any(event.type.terminal for event in events[:-1])
        choices = row.request.get("sampling", {}).get("n", 1)
        output = transcript_of(events, choices).choices()
        assert [choice["text"] for choice in row.output] == [choice.text for choice in output]
        assert [choice["finish_reason"] for choice in row.output] == [choice.finish_reason for choice in output]
        tokens = row.usage["completion_tokens"]
        assert tokens % choices == 0
        assert {choice.text for choice in output} == {text_of_tokens(tokens // choices)}, "each token once"
        if row.error_code == ErrorCode.ATTEMPTS_EXHAUSTED:
            engine_died = row.attempts[-1]["outcome"] == "failed"
            assert (row.status, deaths + engine_died) == ("failed", MAX_ATTEMPTS + row.exposures)
        else:
            assert deaths < MAX_ATTEMPTS + row.exposures or row.status == "cancelled"

    def _check_ledger(self, row: Row[Any]) -> None:
        """Each attempt has an entry with its tokens, and the last one the charge of what was delivered."""
        check_entries(row.ledger, row.attempts)
        cost, charge = (sum(Decimal(str(entry[name])) for entry in row.ledger) for name in ("cost", "charge"))
        assert charge <= cost
        tokens = row.usage["completion_tokens"]
        is_charged = row.status != JobStatus.FAILED and bool(tokens)
        assert charge == (dollars(fresh=3, output=tokens) if is_charged else 0)

    async def _check_log(self, row: Row[Any]) -> None:
        """Redis contains what the owner wrote, and nothing that an earlier owner wrote later."""
        events = await self.logs.read(row.id)
        self._check_ascending(events)
        writer = 0
        for event in events:
            if event.type in (EventType.STARTED, EventType.RESTARTED):
                attempt = event.payload()["attempt"]
                assert attempt >= writer, "attempts follow each other"
                writer = attempt
            elif event.type is EventType.DELTA:
                attempts = {token_id // IDS_PER_ATTEMPT for token_id in event.delta().token_ids}
                assert attempts == {writer}, f"attempt {attempts} writes into the log of {writer}"
                assert event.delta().text or event.delta().finish_reason, "a log ends where its text ends"
        assert writer <= row.attempt
        if JobStatus(row.status).terminal:
            archived = [event.line() for event in parse_archive(row.log)]
            assert [event.line() for event in events] == archived[: len(events)], (
                "Redis and the row have the same events"
            )

    def _check_ascending(self, events: list[Event]) -> None:
        """`seq` increases by one. Only if Redis has lost the log, an attempt continues at the numbers that are its own:
        it takes back the output before it or, if there was none, just starts."""
        has_output = False
        for before, after in itertools.pairwise(events):
            has_output |= before.type is EventType.DELTA
            if after.seq == before.seq + 1:
                continue
            assert self.flushed
            assert after.type is EventType.RESTARTED or (after.type is EventType.STARTED and not has_output)
            # A job that ends without a worker takes back the output as the attempt after its last one.
            attempt = after.payload()["attempt"]
            ending = [seq_before(attempt + 1) + 1] if after.type is EventType.RESTARTED else []
            assert before.seq < after.seq
            assert after.seq in (seq_before(attempt) + 1, *ending)

    async def finish_all(self) -> None:
        """Every job can still end, and every reader receives the end."""
        for number in range(WORKERS):
            await self.kill(number)
        for _ in range(MAX_ATTEMPTS + 1):
            await self.sweep()
            for job_id in self.jobs:
                if (await self.row(job_id)).status == JobStatus.QUEUED:
                    await self.deliver(self.workers[0], job_id)
                for call in list(self.workers[0].engine.calls.values()):
                    await self.tokens(self.workers[0], call, 2)
                    await self.finish(self.workers[0], call, "stop")
        await self.check()
        for job_id in self.jobs:
            archived = [event.line() for event in parse_archive((await self.row(job_id)).log)]
            reader = self.readers[job_id]
            if reader.following is not None:
                done, _ = await asyncio.wait({reader.following}, timeout=WITHIN_S)
                assert done, "a reader receives the end of a job that has ended"
                reader.following.result()
            seen = [event.line() for event in reader.seen]
            if not self.flushed:
                assert seen == archived
            # If Redis lost a log, a reader may have received events, before the restart, that were not kept.
            assert seen[-len(archived) :] == archived
            replay = [event.line() async for events in self.service.follow(job_id) for event in events]
            assert replay == archived

    async def close(self) -> None:
        for worker in self.workers:
            await worker.kill()
        followers = [reader.following for reader in self.readers.values() if reader.following is not None]
        await cancel_and_wait(*followers, self._live)
        await self.redis.aclose()
        await self.database.dispose()


async def open_world(database_url: str, redis_url: str, kind: Callable[..., W] = World) -> W:  # type: ignore[assignment]
    """A new world of a kind, in an empty database and Redis."""
    database = connect(database_url)
    async with database.begin() as connection:
        await connection.execute(
            text("TRUNCATE jobs, usage_events, prices, workers, idempotency_keys, api_keys, projects CASCADE")
        )
    for model in (MODEL, FALLBACK):
        await set_price(database, model)
    owner = await make_owner(database, "test")
    redis = Redis.from_url(redis_url)
    await redis.flushdb()
    worker_settings = WorkerSettings.model_validate(
        {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "lease_s": LEASE_S}
    )
    world = kind(database, redis, owner, worker_settings)
    for worker in world.workers:
        await worker.heartbeat.renew()
    return world


class Jobs(Interleavings):
    """Rules that Hypothesis runs in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World = self._do(open_world(self.database_url, self.redis_url))

    async def _finish_all(self) -> None:
        await self.world.finish_all()

    async def _close(self) -> None:
        await self.world.close()

    def _to_job(self, number: int, action: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self._do(action(self.world.job(number)))

    def _to_run(self, number: int, action: Callable[[Worker, Call], Coroutine[Any, Any, None]]) -> None:
        self._do(action(*self._do(self.world.run(number))))

    @initialize()
    def one_job(self) -> None:
        self._do(self.world.submit(1, None, None, routed=True))

    @rule(
        choices=st.sampled_from([1, 1, 1, 2]),
        key=st.sampled_from([None, None, "a", "b"]),
        late=st.sampled_from([None, None, "start", "finish"]),
        routed=st.sampled_from([True, False]),
        carried=st.sampled_from([True, True, False]),
    )
    def submit(self, choices: int, key: str | None, late: str | None, routed: bool, carried: bool) -> None:
        if len(self.world.open_jobs) < JOBS or key in self.world.by_key:
            self._do(self.world.submit(choices, key, late, routed=routed, carried=carried))

    @rule(job=a_job, worker=a_worker, count=st.integers(0, 5))
    def deliver_a_message(self, job: int, worker: int, count: int) -> None:
        self._do(self.world.deliver(self.world.workers[worker], self.world.job(job), count))

    @rule(job=a_job)
    def deliver_a_message_to_all_workers(self, job: int) -> None:
        self._to_job(job, lambda job_id: self.world.deliver_to_all(job_id, sweeping=False))

    @rule(run=a_run, count=st.integers(1, 9))
    def tokens(self, run: int, count: int) -> None:
        self._to_run(run, lambda worker, call: self.world.tokens(worker, call, count))

    @rule(run=a_run, how=st.sampled_from(["stop", "stop", "length", "error"]))
    def finish(self, run: int, how: str) -> None:
        if how == "error":
            self._to_run(run, self.world.fail)
        else:
            self._to_run(run, lambda worker, call: self.world.finish(worker, call, how))

    @rule(job=a_job, worker=a_worker)
    def fail_at_once(self, job: int, worker: int) -> None:
        self._do(self.world.fail_at_once(self.world.workers[worker], self.world.job(job)))

    @rule(run=a_run, why=st.sampled_from([InterruptReason.REQUEUED, InterruptReason.DEADLINE_EXCEEDED]))
    def stop(self, run: int, why: InterruptReason) -> None:
        self._to_run(run, lambda worker, call: self.world.stop(worker, call, why))

    @rule(worker=a_worker)
    def kill_an_engine(self, worker: int) -> None:
        self._do(self.world.engine_dies(self.world.workers[worker]))

    @rule(worker=a_worker)
    def heartbeat(self, worker: int) -> None:
        self._do(self.world.heartbeat(self.world.workers[worker]))

    @rule(worker=a_worker)
    def expire_a_lease(self, worker: int) -> None:
        self._do(self.world.expire_lease(self.world.workers[worker]))

    @rule(worker=a_worker)
    def kill(self, worker: int) -> None:
        self._do(self.world.kill(worker))

    @rule(worker=a_worker)
    def hold_the_flushes_of_a_worker(self, worker: int) -> None:
        self._do(self.world.workers[worker].hold_flushes())

    @rule(worker=a_worker)
    def resume_the_flushes_of_a_worker(self, worker: int) -> None:
        self._do(self.world.workers[worker].resume_flushes())

    @rule()
    def sweep(self) -> None:
        self._do(self.world.sweep())
        self._do(self.world.check_swept())

    # A worker stops, another resumes its job, and the first one continues without having noticed. Each way in which its
    # fence could be missing has a rule of its own, so that Hypothesis chooses it often.

    @rule(run=a_run, other=a_worker, zombie=a_zombie)
    def failover(self, run: int, other: int, zombie: int) -> None:
        self._fail_over(run, other, zombie)

    @rule(run=a_run, other=a_worker, zombie=a_zombie)
    def failover_and_the_end(self, run: int, other: int, zombie: int) -> None:
        self._fail_over(run, other, zombie, end=True)

    @rule(run=a_run, other=a_worker, zombie=a_zombie)
    def failover_and_a_wiped_redis(self, run: int, other: int, zombie: int) -> None:
        self._fail_over(run, other, zombie, wipe=True)

    @rule(run=a_run, other=a_worker, zombie=a_zombie)
    def failover_and_the_end_and_a_wiped_redis(self, run: int, other: int, zombie: int) -> None:
        self._fail_over(run, other, zombie, end=True, wipe=True)

    def _fail_over(self, run: int, other: int, zombie: int, *, end: bool = False, wipe: bool = False) -> None:
        world = self.world

        async def action(worker: Worker, call: Call) -> None:
            await world.expire_lease(worker)
            await world.sweep()
            successor = world.workers[other]
            resumed = await world.deliver(successor, call.job_id, 1)
            if resumed is not None and end:
                await world.finish(successor, resumed, "stop")
            if wipe:
                await world.wipe_redis()
            for _ in range(zombie):
                if not call.ended.is_set():
                    await world.tokens(worker, call, 1)

        self._to_run(run, action)

    @rule(job=a_job)
    def cancel(self, job: int) -> None:
        self._to_job(job, self.world.cancel)

    @rule(job=a_job, worker=a_worker)
    def lose_the_response_to_a_claim(self, job: int, worker: int) -> None:
        self._to_job(job, lambda job_id: self.world.lose_claim_response(self.world.workers[worker], job_id))

    @rule(job=a_job)
    def pass_a_deadline(self, job: int) -> None:
        self._to_job(job, self.world.pass_deadline)

    @rule()
    def wipe_redis(self) -> None:
        self._do(self.world.wipe_redis())

    @rule(job=a_job)
    def reconnect_a_reader(self, job: int) -> None:
        self._to_job(job, self.world.reconnect)

    @rule(
        run=a_run,
        other=a_worker,
        what=st.sets(
            st.sampled_from(["cancel", "finish", "hand back", "sweep", "heartbeat", "message"]), min_size=2, max_size=3
        ),
    )
    def at_the_same_time(self, run: int, other: int, what: set[str]) -> None:
        self._to_run(run, lambda worker, call: self._race(worker, call, self.world.workers[other], what))

    async def _race(self, worker: Worker, call: Call, other: Worker, what: set[str]) -> None:
        world = self.world
        races: dict[str, Callable[[], Awaitable[object]]] = {
            "cancel": lambda: world.cancel(call.job_id),
            "finish": lambda: world.finish(worker, call, "stop"),
            "hand back": lambda: world.stop(worker, call, InterruptReason.REQUEUED),
            "sweep": world.sweep,
            "heartbeat": worker.heartbeat.renew,
            "message": lambda: world.deliver(other, call.job_id),
        }
        await asyncio.gather(*(races[name]() for name in sorted(what)))
        if "heartbeat" in what:
            await world.heartbeat(worker)  # waits for the runs that the first one has stopped

    @rule(job=a_job, what=st.sets(st.sampled_from(["cancel", "message", "late", "sweep"]), min_size=2))
    def at_the_same_time_to_a_job(self, job: int, what: set[str]) -> None:
        self._to_job(job, lambda job_id: self._race_to(job_id, what))

    async def _race_to(self, job_id: str, what: set[str]) -> None:
        world = self.world
        races: dict[str, Callable[[], Awaitable[object]]] = {
            "cancel": lambda: world.cancel(job_id),
            "late": lambda: world.pass_deadline(job_id),
            "message": lambda: world.deliver_to_all(job_id, sweeping="sweep" in what),
            "sweep": world.sweep,
        }
        await asyncio.gather(*(races[name]() for name in sorted(what)))

    @invariant()
    def invariants_hold(self) -> None:
        self._do(self.world.check())


async def test_jobs_of_the_state_machine_are_started_early(
    servers: Servers, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The machine may be busy: neither a request beside its hint nor an early start expires, and the claim of the second
    # job is not faster than Redis.
    monkeypatch.setattr(job_queue, "TTL_S", LOG_TTL_S)
    monkeypatch.setattr(early_start, "MAX_WAIT_S", LOG_TTL_S)
    world: World = await open_world(database_url, servers.redis(TEST_REDIS_DB))
    worker = world.workers[0]
    claim, started = worker.store.claim, list[asyncio.Future[Call]]()

    async def claim_started(job_id: str, *, suspects: bool = True) -> Job | None:
        if started:
            await asyncio.wait(started)
        return await claim(job_id, suspects=suspects)

    monkeypatch.setattr(worker.store, "claim", claim_started)
    try:
        for number in range(2):
            await world.submit(1, None, None)
            if number:
                started.append(worker.engine.next_call(world.jobs[-1]))
            call = await world.deliver(worker, world.jobs[-1])
            assert call is not None
            await world.finish(worker, call, "stop")
        metrics = worker.runner.context.metrics
        kept = metrics.early_starts.labels(metrics.model_label(MODEL), "kept")._value.get()
        assert kept == 1, "the first job tells the worker the salt of the project"
        await world.submit(1, None, None)
        carried = redis_keys.carried_request(world.jobs[-1])
        assert await world.redis.exists(carried)
        await world.cancel(world.jobs[-1])
        assert not await world.redis.exists(carried), "a cancelled job is not started"
    finally:
        await world.close()


# A failure is made small first, which takes a while.
@pytest.mark.timeout(LONG_S if LONG else 900)
@pytest.mark.hypothesis
def test_no_interleaving_breaks_a_job(servers: Servers, database_url: str) -> None:
    class LocalJobs(Jobs):
        pass

    LocalJobs.database_url = database_url
    LocalJobs.redis_url = servers.redis(TEST_REDIS_DB)
    run_state_machine_as_test(LocalJobs, settings=SETTINGS)
