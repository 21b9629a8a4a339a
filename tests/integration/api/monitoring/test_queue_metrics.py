"""Queue metrics, also while PostgreSQL and Redis are unavailable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.event import listens_for
from sqlalchemy.ext.asyncio import AsyncEngine

from api.monitoring.queue_metrics import QueueMetrics
from api.monitoring.queue_stats import QueueStats, QueueStatsStore
from shared.config.models.loader import Registry, load_registry
from shared.domain.job import WorkerState
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.telemetry.definitions.labels import OTHER
from shared.telemetry.metrics import Metrics
from tests.conftest import Workers
from tests.support.metrics import api_metrics
from tests.support.stack import write_models


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    models = [{"name": name, "engine": "simulated", "slots": 3} for name in ("busy", "idle")]
    return load_registry(write_models(tmp_path / "models.yaml", models))


@pytest.fixture
def metrics(registry: Registry) -> Metrics:
    return api_metrics(*registry.models)


async def submit(store: JobStore, owner: Owner, model: str, priority: int) -> str:
    request = GenerateRequest(prompt="x", priority=priority)
    job, _ = await store.insert(NewJob(owner=owner, model=model, priority=priority, request=request))
    return job.id


async def test_jobs_are_counted_by_model_and_priority_band(
    database: AsyncEngine, store: JobStore, owner: Owner, workers: Workers, metrics: Metrics
) -> None:
    jobs = [await submit(store, owner, "busy", priority) for priority in (0, 1, 4, 9, 9)]
    await submit(store, owner, "removed", 4)
    worker = workers("w1")
    await worker.heartbeat("busy", slots=3, running=1, lease_s=60)
    await workers("w2").heartbeat("busy", slots=3, running=0, lease_s=60, state=WorkerState.DRAINING)
    await workers("dead").heartbeat("busy", slots=3, running=0, lease_s=-1)
    assert await worker.claim(jobs[2]) is not None
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET created_at = now() - interval '90 s' WHERE priority = 1"))

    fleet = await QueueStatsStore(database, metrics).read()
    assert fleet.waiting == {("busy", "0-2"): 2, ("busy", "9"): 2, (OTHER, "3-5"): 1}
    assert fleet.running == {("busy", "3-5"): 1}
    assert 90 <= fleet.oldest["busy", "0-2"] < 150
    assert fleet.oldest["busy", "9"] < 60
    assert fleet.workers == {("busy", "ready"): 1, ("busy", "draining"): 1}


async def test_jobs_that_a_limit_or_a_budget_holds_do_not_wait_yet(
    database: AsyncEngine, store: JobStore, owner: Owner, metrics: Metrics
) -> None:
    """Otherwise they would start workers that have nothing to do. Jobs of a busy upstream wait."""

    async def after(change: str) -> QueueStats:
        async with database.begin() as connection:
            await connection.execute(text(change))
        return await QueueStatsStore(database, metrics).read()

    request = GenerateRequest(prompt="x")
    await store.insert(NewJob(owner=owner, model="busy", priority=4, request=request, delay_s=100))
    held = await after("UPDATE jobs SET created_at = now() - interval '1 day'")
    assert (held.waiting, held.oldest) == ({}, {})
    deferred = await after("UPDATE jobs SET deferred_since = now()")
    assert (deferred.waiting["busy", "3-5"], deferred.oldest["busy", "3-5"] > 80_000) == (1, True)
    due = await after("UPDATE jobs SET deferred_since = NULL, not_before = now() - interval '90 s'")
    assert due.waiting["busy", "3-5"] == 1
    assert 90 <= due.oldest["busy", "3-5"] < 150


def samples(queue_metrics: QueueMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in queue_metrics.collect()
        for sample in family.samples
    }


async def test_every_model_has_series_with_zeros(
    database: AsyncEngine, store: JobStore, owner: Owner, redis: Redis, registry: Registry, metrics: Metrics
) -> None:
    await submit(store, owner, "removed", 4)
    queue_metrics = QueueMetrics(QueueStatsStore(database, metrics), redis, registry, metrics)
    await queue_metrics.refresh()
    values = samples(queue_metrics)
    for model in registry.models:
        assert values["headrace_worker_slots", model] == 3
        assert values["headrace_workers", model, "ready"] == 0
        for priority in ("0-2", "3-5", "6-8", "9"):
            assert values["headrace_jobs_waiting", model, priority] == 0
            assert values["headrace_queue_oldest_age_seconds", model, priority] == 0
    assert values["headrace_jobs_waiting", OTHER, "3-5"] == 1
    assert values["headrace_database_up",] == values["headrace_redis_up",] == 1


async def test_series_are_absent_during_an_outage(registry: Registry, metrics: Metrics) -> None:
    unreachable = connect("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    async with Redis(port=1) as unreachable_redis:
        queue_metrics = QueueMetrics(QueueStatsStore(unreachable, metrics), unreachable_redis, registry, metrics)
        await queue_metrics.refresh()
    await unreachable.dispose()
    values = samples(queue_metrics)
    assert values["headrace_database_up",] == values["headrace_redis_up",] == 0
    assert not [key for key in values if key[0] in ("headrace_jobs_waiting", "headrace_workers")]
    assert values["headrace_worker_slots", "idle"] == 3


async def test_scrapes_within_the_cache_time_share_one_read(
    database: AsyncEngine, redis: Redis, registry: Registry, metrics: Metrics
) -> None:
    reads = 0

    class Counting(QueueStatsStore):
        async def read(self) -> QueueStats:
            nonlocal reads
            reads += 1
            return await super().read()

    queue_metrics = QueueMetrics(Counting(database, metrics), redis, registry, metrics)
    for _ in range(5):
        await queue_metrics.refresh()
    assert reads == 1


async def test_servers_that_accept_no_writes_are_not_up(
    database_url: str, redis: Redis, registry: Registry, metrics: Metrics
) -> None:
    """A standby and a replica answer reads, so the queue is shown."""
    standby = connect(database_url)

    @listens_for(standby.sync_engine, "connect")
    def read_only(connection: Any, _record: Any) -> None:
        connection.cursor().execute("SET default_transaction_read_only = on")

    await redis.config_set("min-replicas-to-write", 1)  # writes get NOREPLICAS
    try:
        queue_metrics = QueueMetrics(QueueStatsStore(standby, metrics), redis, registry, metrics)
        await queue_metrics.refresh()
    finally:
        await redis.config_set("min-replicas-to-write", 0)
        await standby.dispose()
    values = samples(queue_metrics)
    assert values["headrace_database_up",] == values["headrace_redis_up",] == 0
    assert values["headrace_jobs_waiting", "idle", "0-2"] == 0
