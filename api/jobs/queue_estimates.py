"""Queue positions and expected waits of jobs, without a count per request.

Orders and rates are cached for a second, or longer if the queue is so long that counting is slow. The position of a
single submit is exact. During a burst of submits, one in 250 ms is counted, and the position of the others is that
count plus the jobs that this process has submitted since, by any API and of any priority that is served earlier.
Positions over a thousand are rounded down.

Routes do not wait for queries: they use the last results, and renew them for the next request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from api.jobs.queue_store import EXACT, QueuedJob, QueueOrder, QueueStore, ServiceRate
from shared.config.models.loader import Registry
from shared.domain.job import JobStatus, JobSummary, new_job_id
from shared.domain.priorities import is_batch
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

T = TypeVar("T")
FRESH_S = 1.0
POSITION_FRESH_S = 0.25
# A result is cached for at least this many times its query's duration, which in a burst includes waiting for a
# connection: a position for at most `MAX_POSITION_S`.
MIN_QUERY_INTERVAL = 20
MAX_POSITION_S = 1.0
MAX_PLACES = 1000
# For how long after that a route uses a result while a new one is read. After a longer pause, it waits.
STALE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Result(Generic[T]):
    value: T
    fresh_until: float


class _Cache(Generic[T]):
    """Query results by name. Concurrent callers share one query."""

    def __init__(self, fresh_s: float = FRESH_S, max_s: float = math.inf) -> None:
        self._fresh_s = fresh_s
        self._max_s = max_s
        self._results: dict[Hashable, _Result[T]] = {}
        self._queries: dict[Hashable, asyncio.Task[_Result[T]]] = {}

    async def get(self, name: Hashable, query: Callable[[], Awaitable[T]]) -> T:
        result = self._results.get(name)
        if result is not None and time.monotonic() < result.fresh_until:
            return result.value
        if (running := self._queries.get(name)) is None:
            running = self._queries[name] = asyncio.create_task(self._run(name, query))
        return (await asyncio.shield(running)).value

    async def recent(self, name: Hashable, query: Callable[[], Awaitable[T]]) -> T:
        """As `get`, but if the last result is out of date by at most `STALE_S`, return it without waiting for a query.

        A query that fails then is logged, and repeated at the next call.
        """
        result, now = self._results.get(name), time.monotonic()
        if result is None or now > result.fresh_until + STALE_S:
            return await self.get(name, query)
        if now >= result.fresh_until and name not in self._queries:
            self._queries[name] = asyncio.create_task(self._run(name, query))
            self._queries[name].add_done_callback(_report)
        return result.value

    async def _run(self, name: Hashable, query: Callable[[], Awaitable[T]]) -> _Result[T]:
        try:
            started = time.monotonic()
            value = await query()
            took = time.monotonic() - started
            lasts_s = min(self._max_s, max(self._fresh_s, MIN_QUERY_INTERVAL * took))
            self._results[name] = _Result(value, started + lasts_s)
            return self._results[name]
        finally:
            del self._queries[name]


def _report(query: asyncio.Task[Any]) -> None:
    """Log the error of a query that nobody may wait for."""
    if not query.cancelled() and (error := query.exception()) is not None:
        logger.warning("cannot read the queues for routes, using earlier estimates: %s", error)


@dataclass(frozen=True, slots=True)
class QueueOrders:
    """Queues by model, as they were at `read_at`, on the monotonic clock, or later."""

    by_model: dict[str, QueueOrder]
    read_at: float


class _Submitted:
    """The jobs of one queue and priority that this process has submitted, in the order of their ids."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._dropped = 0

    def add(self, job_id: str) -> None:
        # Commits end in another order than the ids are created, but close to it.
        insort(self._ids, job_id)
        if len(self._ids) > 2 * MAX_PLACES:
            del self._ids[:MAX_PLACES]
            self._dropped += MAX_PLACES

    def up_to(self, job_id: str) -> int:
        """The number of jobs with this id or an earlier one."""
        return self._dropped + bisect_right(self._ids, job_id)


@dataclass(frozen=True, slots=True)
class _NewJob:
    """A job that has not been submitted."""

    model: str
    priority: int
    id: str


class QueueEstimates:
    """Positions and expected waits of queued jobs. During a database outage both are None."""

    def __init__(self, store: QueueStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        # The position of the job that was counted, minus its place among this process's submits.
        self._positions: _Cache[int] = _Cache(POSITION_FRESH_S, MAX_POSITION_S)
        self._submitted: defaultdict[tuple[str, int], _Submitted] = defaultdict(_Submitted)
        self._orders: _Cache[QueueOrders] = _Cache()
        self._paces: _Cache[ServiceRate] = _Cache()

    def created(self, job: JobSummary) -> None:
        """Note that this process has submitted a job. One that follows another job is not in the queue."""
        if job.follows is None:
            self._submitted[self._registry.queue_of(job.model), job.priority].add(job.id)

    async def submitted(self, job: JobSummary) -> tuple[int | None, float | None]:
        """Position and expected wait, in seconds, of a job that has just been submitted: the last of its priority."""
        if job.follows is not None:
            return await self.waiting(job)
        try:
            position = await self._last_position(job)
            return position, await self.wait_s(job.model, job.priority, position)
        except Exception as error:
            return self._unknown(job, error)

    async def new_job_wait_s(self, model: str, priority: int) -> float | None:
        """Return the seconds that a job would wait if it was submitted now, by recent results; None if unknown.

        Raises during a database outage.
        """
        job = _NewJob(model, priority, new_job_id())
        before = await self._positions.recent((self._registry.queue_of(model), priority), lambda: self._counted(job))
        return self._wait_s(await self.rate(model), model, priority, max(0, before + self._place(job)))

    async def rate(self, model: str) -> ServiceRate:
        """Return the rate at which a model's jobs were served recently. Raises during a database outage."""
        return await self._paces.recent(self._registry.queue_of(model), lambda: self._store.pace(model))

    async def is_paused(self, job: JobSummary) -> bool:
        """Whether a job waits because an operator has paused its model's queue; False during a database outage."""
        return job.status is JobStatus.QUEUED and await self.is_queue_paused(job.model)

    async def is_queue_paused(self, model: str) -> bool:
        """Whether an operator has paused the queue of a model; False during a database outage."""
        try:
            return (await self.rate(model)).paused
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("model=%s cannot determine whether its queue is paused: %s", model, error)
            return False

    async def waiting(self, job: JobSummary) -> tuple[int | None, float | None]:
        """Position and expected wait, in seconds, of any job; None if it is not queued.

        Those of a job that follows another one are those of the other one.
        """
        if job.status is not JobStatus.QUEUED:
            return None, None
        try:
            if job.follows is not None:
                leader = await self._store.leader(job)
                if leader is None:
                    return None, None
                job = leader
            position = await self._position(job)
            return position, await self.wait_s(job.model, job.priority, position, job.not_before)
        except Exception as error:
            return self._unknown(job, error)

    async def orders(self, models: Sequence[str]) -> QueueOrders:
        """Return the queues of these models. Raises during a database outage."""
        return await self._orders.get(tuple(models), lambda: self._read_orders(models))

    async def _read_orders(self, models: Sequence[str]) -> QueueOrders:
        read_at = time.monotonic()
        return QueueOrders(await self._store.orders(models), read_at)

    async def queued_at(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Return the models of those of these jobs that are queued. Raises during a database outage."""
        return await self._store.queued_at(job_ids)

    async def wait_s(
        self, model: str, priority: int, position: int, not_before: datetime | None = None
    ) -> float | None:
        """Return the seconds until the job at a position starts, not before the time until which it is deferred.

        Raises during a database outage.
        """
        pace = await self._paces.get(self._registry.queue_of(model), lambda: self._store.pace(model))
        return self._wait_s(pace, model, priority, position, not_before)

    def _wait_s(
        self, pace: ServiceRate, model: str, priority: int, position: int, not_before: datetime | None = None
    ) -> float | None:
        spec = self._registry.models.get(model)  # None if the model has been removed from models.yaml
        preempts = spec is not None and spec.yields and not is_batch(priority)
        estimate = pace.wait_s(position, pace.urgent if preempts else pace.running)
        if estimate is None:
            return None
        if spec is not None and spec.requests_per_minute is not None:
            per_second = spec.requests_per_minute / 60 * max(1, pace.slots // spec.slots)
            estimate = max(estimate, round(position / per_second, 1))
        if not_before is not None:
            estimate = max(estimate, round((not_before - datetime.now(UTC)).total_seconds(), 1))
        return estimate

    async def _last_position(self, job: QueuedJob) -> int:
        """The position of a job that has just been submitted."""
        before = await self._positions.get(
            (self._registry.queue_of(job.model), job.priority), lambda: self._counted(job)
        )
        return max(0, before + self._place(job))

    async def _counted(self, job: QueuedJob) -> int:
        """The position of a job, minus its place."""
        position = await self._position(job)
        # Jobs of the same commit may be noted only while the query runs, and the query counts them.
        return position - self._place(job)

    def _place(self, job: QueuedJob) -> int:
        """The number of jobs that this process has submitted before and that are served no later than this job."""
        queue = self._registry.queue_of(job.model)
        return sum(
            submitted.up_to(job.id)
            for priority in range(job.priority + 1)
            if (submitted := self._submitted.get((queue, priority))) is not None
        )

    async def _position(self, job: QueuedJob) -> int:
        position = await self._store.position(job)
        if position < EXACT:
            return position
        order = (await self.orders([job.model])).by_model[job.model]
        return order.position(job.priority, job.id, known_queued=True) or position

    @staticmethod
    def _unknown(job: JobSummary, error: Exception) -> tuple[None, None]:
        if not is_database_outage(error):
            raise error
        logger.warning("job=%s cannot determine its queue position: %s", job.id, error)
        return None, None
