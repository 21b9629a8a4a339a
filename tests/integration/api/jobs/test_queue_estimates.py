"""Queue positions and expected waits."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.admin.fleet.store import FleetStore
from api.context.window import ContextWindow
from api.jobs.queue_estimates import FRESH_S, STALE_S, QueueEstimates
from api.jobs.queue_positions import QueuePositions
from api.jobs.queue_store import EXACT, STEP, QueueStore, ServiceRate
from api.jobs.route_candidates import RouteCandidates
from api.streaming.hub import StreamHub
from api.streaming.reader import QueuedReader
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.config.models.simulated import SimulatedModel
from shared.domain.job import AttemptOutcome, Choice, Job, JobStatus, JobSummary, OpenBreaker, Usage
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import JobResult
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog
from shared.runtime.aio import cancel_and_wait
from shared.telemetry.definitions.labels import SkipReason
from tests.conftest import Workers
from tests.support.metrics import api_metrics
from tests.support.transcripts import output_of

UPSTREAM = OpenAIOptions(base_url="http://127.0.0.1:1/v1")
REGISTRY = Registry(
    {
        "m": SimulatedModel(name="m", engine="simulated"),
        "up": OpenAIModel(name="up", engine="openai", model="x", options=UPSTREAM),
    }
)
LEASE_S = 60


@pytest.fixture
def queue_store(database: AsyncEngine) -> QueueStore:
    return QueueStore(database)


@pytest.fixture
def queue_estimates(queue_store: QueueStore) -> QueueEstimates:
    return QueueEstimates(queue_store, REGISTRY)


async def submit(store: JobStore, owner: Owner, priority: int = 3, model: str = "m") -> Job:
    return (await store.insert(NewJob(owner, model, priority, GenerateRequest(prompt="x"))))[0]


async def test_positions_follow_priority_then_submit_order(
    store: JobStore, queue_store: QueueStore, owner: Owner
) -> None:
    late, first, second, urgent = [await submit(store, owner, priority) for priority in (9, 3, 3, 0)]
    await submit(store, owner, model="other")
    jobs = [urgent, first, second, late]
    assert [await queue_store.position(job) for job in jobs] == [0, 1, 2, 3]
    orders = await queue_store.orders(["m", "none"])
    assert [orders["m"].position(job.priority, job.id, known_queued=False) for job in jobs] == [0, 1, 2, 3]
    assert orders["m"].position(3, "job_f", known_queued=True) is None
    assert orders["none"].keys == []


async def test_submits_that_are_noted_in_another_order_are_counted_once(
    store: JobStore, queue_store: QueueStore, queue_estimates: QueueEstimates, owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One commit stores several jobs; some are noted only while the position of a later one is counted."""
    first, second, third, fourth, fifth = [await submit(store, owner) for _ in range(5)]
    count = queue_store.position

    async def position(job: JobSummary) -> int:
        counted = await count(job)
        queue_estimates.created(second)
        return counted

    monkeypatch.setattr(queue_store, "position", position)
    queue_estimates.created(first)
    queue_estimates.created(third)
    assert (await queue_estimates.submitted(third))[0] == 2
    queue_estimates.created(fifth)
    queue_estimates.created(fourth)
    assert [(await queue_estimates.submitted(job))[0] for job in (fourth, fifth, first)] == [3, 4, 0]


async def test_positions_beyond_the_exact_ones_are_rounded_down(
    store: JobStore, queue_store: QueueStore, queue_estimates: QueueEstimates, owner: Owner, database: AsyncEngine
) -> None:
    job = await submit(store, owner, 9)
    async with database.connect() as connection:
        await connection.execute(
            text(
                "INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata)"
                " SELECT 'job_' || lpad(n::text, 32, '0'), project_id, key_id, model, status, 3, request, metadata"
                " FROM jobs, generate_series(1, 5250) n"
            )
        )
    order = (await queue_store.orders(["m"]))["m"]
    assert len(order.keys) == EXACT + 43, "its size is limited"
    positions = [order.position(3, f"job_{n:032}", known_queued=True) for n in (1, 1000, 1001, 1099, 1100, 1101, 5250)]
    assert positions == [0, 999, 1000, 1000, 1000, 1100, 5200]
    assert order.position(3, f"job_{1050:032}", known_queued=False) is None
    assert await queue_estimates.waiting(job) == (5200, None)
    assert STEP > 5250 - 5200


@pytest.mark.parametrize(
    ("pace", "position", "occupied", "wait_s"),
    [
        (ServiceRate(0, 0, 0, 2.0, 0), 0, 0, None),
        (ServiceRate(4, 0, 0, None, 1), 3, 0, 0.0),
        (ServiceRate(4, 0, 0, None, 1), 4, 0, None),
        (ServiceRate(4, 4, 1, 2.0, 1), 0, 4, 0.5),
        (ServiceRate(4, 4, 1, 2.0, 1), 0, 1, 0.0),
        (ServiceRate(4, 4, 1, 2.0, 1), 7, 4, 4.0),
        (ServiceRate(4, 9, 9, 2.0, 1), 7, 9, 4.0),
    ],
    ids=str,
)
def test_the_wait_depends_on_free_slots_and_service_time(
    pace: ServiceRate, position: int, occupied: int, wait_s: float | None
) -> None:
    assert pace.wait_s(position, occupied) == wait_s


async def test_the_wait_in_a_paused_queue_is_unknown_and_routes_avoid_it(
    store: JobStore, queue_store: QueueStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await workers("w-m").heartbeat("m", slots=2, running=0, lease_s=LEASE_S)
    job, new = await submit(store, owner), NewJob(owner, "m", 3, GenerateRequest(prompt="x"))

    async def known() -> tuple[tuple[int | None, float | None], bool, float | None, SkipReason | None]:
        estimates = QueueEstimates(queue_store, REGISTRY)
        candidates = RouteCandidates(REGISTRY, ContextWindow(REGISTRY), estimates)
        refusal = await candidates.overload("m", new)
        return (
            await estimates.waiting(job),
            await estimates.is_paused(job),
            await candidates.wait_s("m", 3),
            refusal.reason if refusal is not None else None,
        )

    assert await known() == ((0, 0.0), False, 0.0, None)
    await FleetStore(database).pause(["m"], owner.key_id)
    assert await known() == ((0, None), True, math.inf, SkipReason.PAUSED)
    await FleetStore(database).resume(["m"])
    assert await known() == ((0, 0.0), False, 0.0, None)


async def test_the_pace_is_measured_from_live_workers_and_recent_jobs(
    store: JobStore,
    queue_store: QueueStore,
    queue_estimates: QueueEstimates,
    workers: Workers,
    owner: Owner,
    database: AsyncEngine,
) -> None:
    async def heartbeat(model: str, slots: int) -> None:
        await workers(f"w-{model}").heartbeat(model, slots=slots, running=0, lease_s=LEASE_S)

    assert await queue_store.pace("m") == ServiceRate(0, 0, 0, None, 0)
    for model in ("m", "up"):
        await heartbeat(model, 2)
        for priority in (3, 9, 9, 3):
            job = await submit(store, owner, priority, model)
            claimed = await workers(f"w-{model}").claim(job.id)
        assert await queue_store.pace(model) == ServiceRate(2, 4, 2, None, 1), "none has ended yet"
        assert claimed is not None
        now = datetime.now(UTC)
        attempts = tuple(replace(attempt, ended_at=now, outcome="completed") for attempt in claimed.attempts)
        ending = JobResult(
            JobStatus.COMPLETED, now, output_of(Choice(0, "a", "stop")), Usage(), None, now, attempts, b""
        )
        assert await workers(f"w-{model}").finish(job.id, 1, ending)
    async with database.connect() as connection:
        statement = "UPDATE jobs SET attempt_started_at = finished_at - interval '3 s' WHERE finished_at IS NOT NULL"
        await connection.execute(text(statement))
    assert await queue_store.pace("m") == ServiceRate(2, 3, 1, 3.0, 1)
    async with database.connect() as connection:
        statement = """
            INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, finished_at)
            SELECT 'job_' || number, project_id, key_id, model, 'completed', 3, '{}', '{}', now()
            FROM jobs, generate_series(1, 300) AS number WHERE model = 'm' AND finished_at IS NOT NULL
        """
        await connection.execute(text(statement))
    assert (await queue_store.pace("m")).service_s == 3.0, "jobs that the cache has answered say nothing"

    # Three jobs run, two of them in batches. An urgent job preempts those, except on an upstream model.
    assert await queue_estimates.waiting(await submit(store, owner, 3, "m")) == (0, 0.0)
    assert await queue_estimates.waiting(await submit(store, owner, 9, "m")) == (1, 3.0)
    assert await queue_estimates.waiting(await submit(store, owner, 3, "up")) == (0, 1.5)


async def test_the_limit_of_an_upstream_and_its_breaker_delay_the_start(
    queue_store: QueueStore, workers: Workers
) -> None:
    """Two workers with free slots may start 30 jobs a minute each."""
    options = UPSTREAM.model_copy(update={"requests_per_minute": 30})
    model = OpenAIModel(name="m", engine="openai", model="x", options=options, slots=8)
    registry = Registry({"m": model})
    for name in ("v", "w"):
        await workers(name).heartbeat("m", slots=8, running=0, lease_s=LEASE_S)
    assert await QueueEstimates(queue_store, registry).wait_s("m", 3, 10) == 10.0
    opened = OpenBreaker(datetime.now(UTC), "HTTP 503")
    await workers("v").heartbeat("m", slots=8, running=0, lease_s=LEASE_S, breaker=opened)
    assert await QueueEstimates(queue_store, registry).wait_s("m", 3, 5) == 10.0
    await workers("w").heartbeat("m", slots=8, running=0, lease_s=LEASE_S, breaker=opened)
    assert await QueueEstimates(queue_store, registry).wait_s("m", 3, 0) is None


async def test_routes_use_the_last_rate_while_a_new_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """For some seconds: after a longer pause, and at first, they wait for it."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("api.jobs.queue_estimates.time", clock)
    may_answer = asyncio.Event()
    read: list[asyncio.Future[None]] = []

    class SlowStore(QueueStore):
        def __init__(self) -> None:
            """It has no database."""

        async def pace(self, model: str) -> ServiceRate:
            read.append(asyncio.get_running_loop().create_future())
            slots = len(read)
            await may_answer.wait()
            read[slots - 1].set_result(None)
            if slots == 3:
                raise OSError("the database is lost")
            return ServiceRate(slots, 0, 0, 1.0, 1)

    estimates = QueueEstimates(SlowStore(), REGISTRY)
    first = asyncio.create_task(estimates.rate("m"))
    await asyncio.sleep(0)
    assert not first.done(), "nothing is known yet"
    may_answer.set()
    assert (await first).slots == 1

    clock.now += FRESH_S
    may_answer.clear()
    assert [(await estimates.rate("m")).slots for _ in range(3)] == [1, 1, 1]
    await asyncio.sleep(0)
    assert len(read) == 2, "one query for all of them"
    may_answer.set()
    await read[1]
    await asyncio.sleep(0)
    assert (await estimates.rate("m")).slots == 2

    clock.now += FRESH_S
    assert (await estimates.rate("m")).slots == 2
    await asyncio.sleep(0)
    await read[2]
    assert (await estimates.rate("m")).slots == 2, "the query has failed, and the last rate is recent enough"

    clock.now += 2 * (FRESH_S + STALE_S)
    assert (await estimates.rate("m")).slots > 2


async def test_readers_receive_their_position_when_it_changes_or_the_queue_is_paused(
    store: JobStore,
    queue_store: QueueStore,
    logs: EventLog,
    redis: Redis,
    workers: Workers,
    owner: Owner,
    database: AsyncEngine,
) -> None:
    hub = StreamHub(redis, logs, store, api_metrics(), resync_s=60)
    jobs = [await submit(store, owner) for _ in range(3)]
    running = await workers("w").claim(jobs[0].id)
    assert running is not None
    followed = {job.id: QueuedReader("m", 3, position) for job, position in zip(jobs, (None, 0, 1), strict=True)}
    follows = {job_id: hub.follow(job_id, 0, queued) for job_id, queued in followed.items()}
    pending = {job_id: asyncio.ensure_future(anext(follow)) for job_id, follow in follows.items()}

    async def report() -> dict[int, bytes]:
        """Report positions from new counts. Returns what each reader received."""
        count = await QueuePositions(hub, QueueEstimates(queue_store, REGISTRY)).report()
        received = {}
        for number, job in enumerate(jobs):
            if pending[job.id] in (await asyncio.wait([pending[job.id]], timeout=0.05))[0]:
                (event,) = pending[job.id].result()
                assert (event.seq, event.type.value) == (0, "queued")
                received[number] = event.data
                pending[job.id] = asyncio.ensure_future(anext(follows[job.id]))
        assert len(received) == count
        return received

    assert await report() == {}
    urgent = await submit(store, owner, 0)
    assert await report() == {1: b'{"position":1,"eta_s":null}', 2: b'{"position":2,"eta_s":null}'}
    assert await report() == {}
    assert await workers("w").claim(urgent.id) is not None
    assert await workers("w").requeue(jobs[0].id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
    assert await report() == {0: b'{"position":0,"eta_s":null}'}, "it was running, and is queued again"
    assert await workers("w").claim(jobs[0].id) is not None
    assert await report() == {1: b'{"position":0,"eta_s":null}', 2: b'{"position":1,"eta_s":null}'}
    fleet = FleetStore(database)
    await fleet.pause(["m"], owner.key_id)
    paused = {1: b'{"position":0,"eta_s":null,"paused":true}', 2: b'{"position":1,"eta_s":null,"paused":true}'}
    assert await report() == paused
    assert await report() == {}
    async with database.connect() as connection:
        await connection.execute(text("UPDATE jobs SET model = 'up' WHERE id = :id"), {"id": jobs[1].id})
    assert await report() == {2: b'{"position":0,"eta_s":null,"paused":true}'}
    assert await report() == {1: b'{"position":0,"eta_s":null}'}, "it has moved to a model that is not paused"
    await fleet.resume(["m"])
    assert await report() == {2: b'{"position":0,"eta_s":null}'}
    await cancel_and_wait(*pending.values())
    for follow in follows.values():
        await follow.aclose()  # type: ignore[attr-defined]
    assert await QueuePositions(hub, QueueEstimates(queue_store, REGISTRY)).report() == 0


@pytest.mark.parametrize("when", ["after the queue was read", "while its wait is estimated"])
async def test_no_position_is_reported_to_a_reader_whose_job_has_started(
    store: JobStore,
    queue_store: QueueStore,
    logs: EventLog,
    redis: Redis,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """The queue that was read still has the job, and a queue that takes long to read is used for longer."""
    hub = StreamHub(redis, logs, store, api_metrics(), resync_s=60)
    job = await submit(store, owner)
    queued = QueuedReader("m", 3, None)
    follow = hub.follow(job.id, 0, queued)
    pending = asyncio.ensure_future(anext(follow))
    await asyncio.sleep(0)  # the reader is registered
    estimates = QueueEstimates(queue_store, REGISTRY)
    await estimates.orders(["m"])
    wait_s = estimates.wait_s

    def start() -> None:
        queued.position, queued.event_at = None, time.monotonic()

    async def estimated(*arguments: Any) -> float | None:
        start()
        return await wait_s(*arguments)

    if when == "after the queue was read":
        start()
    else:
        monkeypatch.setattr(estimates, "wait_s", estimated)
    assert await QueuePositions(hub, estimates).report() == 0
    monkeypatch.undo()
    assert await QueuePositions(hub, QueueEstimates(queue_store, REGISTRY)).report() == 1, "it is queued again"
    await pending
    await follow.aclose()  # type: ignore[attr-defined]
