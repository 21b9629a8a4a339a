"""An adapter's jobs lie on the queue of its base: they count for its order, its pace, its pauses and its workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.admin.fleet.service import FleetService
from api.admin.fleet.store import FleetStore
from api.console.data.overview_store import OverviewStore
from api.jobs.queue_estimates import QueueEstimates
from api.jobs.queue_store import QueueStore, ServiceRate
from api.keys.principal import Principal, Scope
from api.monitoring.queue_stats import QueueStatsStore
from shared.config.models.adapters import Adapter
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.errors import Conflict
from shared.domain.fallback import Availability
from shared.domain.job import Job, WorkerReport
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest
from shared.postgres.claim_store import ClaimStore
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.redis.job_queue import HintSender, celery_app, depths
from tests.conftest import TEST_REDIS_DB, Servers
from tests.support.metrics import api_metrics

OTHER = SimulatedModel(name="other", engine="simulated")
PLAIN = SimulatedModel(name="base", engine="simulated", slots=2)
ADAPTERS = [PLAIN.as_adapter(name, "", Adapter("base", f"./{name}")) for name in ("tone", "legal")]
BASE = PLAIN.with_adapters(ADAPTERS)
REGISTRY = Registry({spec.name: spec for spec in (BASE, *ADAPTERS, OTHER)})
NAMES = ("base", "tone", "legal")


@pytest.fixture
def worker(database: AsyncEngine) -> ClaimStore:
    """A worker of the base."""
    return ClaimStore(database, "w", "base", ["tone", "legal"])


async def heartbeat(worker: ClaimStore, running: int = 0) -> None:
    report = WorkerReport("1", BASE.summary)
    await worker.heartbeat("base", slots=2, running=running, lease_s=60, report=report)


async def submit(store: JobStore, owner: Owner, model: str, priority: int = 3) -> Job:
    return (await store.insert(NewJob(owner, model, priority, GenerateRequest(prompt="x"))))[0]


async def test_the_base_and_its_adapters_have_one_order(store: JobStore, database: AsyncEngine, owner: Owner) -> None:
    queues = QueueStore(database, REGISTRY)
    jobs = [await submit(store, owner, model) for model in ("tone", "base", "legal", "tone", "other")]
    urgent = await submit(store, owner, "legal", 0)
    assert [await queues.position(job) for job in jobs] == [1, 2, 3, 4, 0]
    assert await queues.position(urgent) == 0
    orders = await queues.orders(["base", "tone", "other"])
    assert orders["base"] is orders["tone"]
    assert [orders["tone"].position(3, job.id, known_queued=True) for job in jobs[:4]] == [1, 2, 3, 4]
    assert orders["other"].position(3, jobs[4].id, known_queued=True) == 0


async def test_the_wait_of_an_adapters_job_is_that_for_the_workers_of_its_base(
    store: JobStore, database: AsyncEngine, owner: Owner, worker: ClaimStore
) -> None:
    queues = QueueStore(database, REGISTRY)
    estimates = QueueEstimates(queues, REGISTRY)
    await heartbeat(worker)
    running = [await submit(store, owner, model) for model in ("base", "tone")]
    for job in running:
        assert await worker.claim(job.id)
    assert await queues.pace("legal") == ServiceRate(2, 2, 2, None, 1)
    async with database.begin() as connection:
        await connection.execute(
            text(
                """
                INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, finished_at,
                                  attempt_started_at)
                SELECT 'job_' || number, project_id, key_id, CASE number % 2 WHEN 0 THEN 'base' ELSE 'legal' END,
                       'completed', 3, '{}', '{}', now(), now() - (2 + number % 2 * 2) * interval '1 second'
                FROM jobs, generate_series(1, 20) AS number WHERE id = :id
                """
            ),
            {"id": running[0].id},
        )
    assert (await queues.pace("base")).service_s == 3.0, "of the jobs of all"
    assert await queues.pace("legal") == await queues.pace("base")
    first, second = await submit(store, owner, "tone"), await submit(store, owner, "legal")
    assert await estimates.waiting(first) == (0, 1.5)
    assert await estimates.waiting(second) == (1, 3.0)
    estimates.created(second)
    assert await estimates.new_job_wait_s("base", 3) == 4.5


async def test_the_worker_of_the_base_claims_jobs_of_its_adapters(
    store: JobStore, database: AsyncEngine, owner: Owner, worker: ClaimStore
) -> None:
    jobs = {model: await submit(store, owner, model) for model in (*NAMES, "other")}
    claimed = {model: await worker.claim(job.id) for model, job in jobs.items()}
    assert claimed.pop("other") is None
    assert {model: job and job.request.adapter for model, job in claimed.items()} == {
        "base": None,
        "tone": "tone",
        "legal": "legal",
    }
    stored = await store.get(jobs["tone"].id)
    assert stored is not None
    assert stored.model == "tone"
    later = await submit(store, owner, "tone")
    assert await ClaimStore(database, "v", "base").claim(later.id) is None, "it has not been started with the adapter"


async def test_messages_go_to_the_queue_of_the_base(redis: Redis, servers: Servers) -> None:
    sender = HintSender(celery_app(servers.redis(TEST_REDIS_DB)), redis, REGISTRY.queue_of)
    for number, model in enumerate((*NAMES, "other")):
        sender.put(Hint(f"job_{number}", model, 3))
    assert await sender.flush()
    assert [sum((await depths(redis, model)).values()) for model in (*NAMES, "other")] == [3, 0, 0, 1]


async def test_lost_messages_of_adapters_are_found_in_the_order_of_service(
    store: JobStore, recovery_store: RecoveryStore, owner: Owner
) -> None:
    jobs = [await submit(store, owner, model) for model in ("tone", "base", "legal", "tone")]
    urgent = await submit(store, owner, "legal", 0)
    await submit(store, owner, "other")
    expected = [urgent.id, *(job.id for job in jobs)]
    waiting = await recovery_store.waiting(NAMES, limit=9, older_than_s=0, priorities=range(10))
    assert [hint.job_id for hint in waiting] == expected
    assert [hint.model for hint in waiting] == ["legal", "tone", "base", "legal", "tone"]
    first = await recovery_store.waiting(NAMES, limit=2, older_than_s=0, priorities=range(10))
    assert [hint.job_id for hint in first] == expected[:2]
    passed_over = await recovery_store.queued_before(NAMES, 3, jobs[2].id, due_for_s=0, limit=9)
    assert [hint.job_id for hint in passed_over] == [job.id for job in jobs[:2]]


async def test_an_adapter_is_served_if_a_worker_of_its_base_reports_it(
    recovery_store: RecoveryStore, database: AsyncEngine, worker: ClaimStore
) -> None:
    await ClaimStore(database, "v", "other").heartbeat("other", slots=1, running=0, lease_s=60)
    assert (await recovery_store.availability()).available == {"other"}
    await heartbeat(worker)
    assert (await recovery_store.availability()).available == {*NAMES, "other"}
    assert await recovery_store.served_models() == {*NAMES, "other"}
    await worker.heartbeat("base", slots=2, running=0, lease_s=-1, report=WorkerReport("1", BASE.summary))
    assert (await recovery_store.availability()).available == {"other"}


async def test_a_pause_of_the_base_is_one_of_its_adapters(
    store: JobStore,
    recovery_store: RecoveryStore,
    database: AsyncEngine,
    owner: Owner,
    redis: Redis,
    worker: ClaimStore,
) -> None:
    fleet = FleetService(FleetStore(database), redis, REGISTRY)
    principal = Principal(owner.project_id, owner.key_id, frozenset({Scope.ADMIN}))
    await heartbeat(worker)
    job = await submit(store, owner, "tone")
    await fleet.pause(principal, "base")
    assert set(await fleet.pauses()) == set(NAMES)
    assert await recovery_store.availability() == Availability(frozenset(), frozenset(NAMES))
    assert await worker.claim(job.id) is None
    assert (await QueueStore(database, REGISTRY).pace("tone")).paused
    for change in (fleet.pause, fleet.resume):
        with pytest.raises(Conflict, match="`tone` is an adapter, and its jobs lie on the queue of `base`"):
            await change(principal, "tone")
    await fleet.resume(principal, "base")
    assert await fleet.pauses() == {}
    assert await worker.claim(job.id)


async def test_metrics_and_the_console_count_an_adapters_jobs_for_the_queue_of_its_base(
    store: JobStore, database: AsyncEngine, owner: Owner, worker: ClaimStore
) -> None:
    await heartbeat(worker)
    jobs = [await submit(store, owner, model) for model in ("tone", "tone", "base", "legal")]
    assert await worker.claim(jobs[0].id)
    stats = await QueueStatsStore(database, api_metrics(*REGISTRY.models), REGISTRY.queue_of).read()
    assert stats.waiting == {("base", "3-5"): 3}
    assert stats.running == {("base", "3-5"): 1}
    overview = OverviewStore(database, REGISTRY.queue_of)
    live = await overview.live(REGISTRY.queues, datetime.now(UTC) - timedelta(hours=1))
    counts = {(queue.model, queue.interactive): (queue.waiting, queue.running) for queue in live.queues}
    assert counts == {
        ("base", True): (3, 1),
        ("base", False): (0, 0),
        ("other", True): (0, 0),
        ("other", False): (0, 0),
    }
