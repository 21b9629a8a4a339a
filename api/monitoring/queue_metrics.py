"""Queue metrics for Prometheus, read from the database at each scrape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from api.monitoring.queue_stats import QueueStats, QueueStatsStore
from shared.config.models.loader import Registry
from shared.domain.job import WorkerState
from shared.redis.write_check import check_writes
from shared.runtime.outages import is_database_outage, is_redis_outage
from shared.telemetry.definitions.labels import OTHER, PRIORITY_LABELS
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Concurrent scrapes share one read.
FRESH_S = 1.0
# A slower service counts as unavailable. Prometheus's scrape timeout is 10 s by default.
TIMEOUT_S = 4.0


class QueueMetrics(Collector):
    """Numbers of jobs and workers, and whether the database and Redis accept writes.

    Every API process exports the same values, so that queries use max(). During a database outage the series are
    absent rather than stale.
    """

    def __init__(self, store: QueueStatsStore, redis: Redis, registry: Registry, metrics: Metrics) -> None:
        self._store = store
        self._redis = redis
        self._registry = registry
        self._metrics = metrics
        self._fleet: QueueStats | None = None
        self._database_up = False
        self._redis_up = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the values, unless the last read was less than `FRESH_S` ago. Call before `collect`."""
        async with self._reading:
            if time.monotonic() - self._read_at < FRESH_S:
                return
            (self._fleet, self._database_up), self._redis_up = await asyncio.gather(
                self._read_fleet(), self._check_redis()
            )
            self._read_at = time.monotonic()

    async def _read_fleet(self) -> tuple[QueueStats | None, bool]:
        """The statistics, if they can be read, and whether the database accepts writes."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._store.read(), await self._store.is_writable()
        except Exception as error:
            if not (is_database_outage(error) or isinstance(error, TimeoutError)):
                raise
            logger.warning("cannot read the queue for /metrics: %s", error or "the query timed out")
            return None, False

    async def _check_redis(self) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await check_writes(self._redis)
        except Exception as error:
            if not (is_redis_outage(error) or isinstance(error, TimeoutError)):
                raise
            return False
        return True

    def collect(self) -> Iterable[Metric]:
        metrics, fleet, models = self._metrics, self._fleet, self._registry.queues
        yield metrics.database_up.family([((), float(self._database_up))])
        yield metrics.redis_up.family([((), float(self._redis_up))])
        yield metrics.worker_slots.family([((name,), self._registry[name].slots) for name in models])
        if fleet is None:
            return
        # Zeros are exported too: a series that disappears is ambiguous.
        jobs = [(model, priority) for model in models for priority in PRIORITY_LABELS]
        jobs += [key for key in {*fleet.waiting, *fleet.running} if key[0] == OTHER]
        workers = [(model, state.value) for model in models for state in WorkerState]
        yield metrics.jobs_waiting.family([(key, fleet.waiting[key]) for key in jobs])
        yield metrics.jobs_running.family([(key, fleet.running[key]) for key in jobs])
        unreadable = dict.fromkeys(models, 0) | fleet.unreadable
        yield metrics.jobs_unreadable.family([((model,), count) for model, count in unreadable.items()])
        deferred = dict.fromkeys(models, 0) | fleet.deferred
        yield metrics.deferred_jobs.family([((model,), count) for model, count in deferred.items()])
        yield metrics.queues_paused.family([((model,), float(model in fleet.paused)) for model in models])
        yield metrics.queue_oldest_age.family([(key, fleet.oldest.get(key, 0.0)) for key in jobs])
        yield metrics.workers.family([(key, fleet.workers[key]) for key in workers])
