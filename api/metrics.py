"""What an API process counts of HTTP, and the queue as the rows have it, which it reads when Prometheus asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from sse_starlette.sse import SendTimeoutError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import metrics
from shared.fleet import Fleet, FleetStore
from shared.job import WorkerState
from shared.outage import database_is_away, redis_is_away
from shared.registry import Registry

logger = logging.getLogger(__name__)

# What several Prometheus servers ask for at once is read once.
FRESH_S = 1.0
# Prometheus waits for 10 s by default; what takes longer than this is away.
PATIENCE_S = 4.0
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER_METHOD = "(other)"
NO_ROUTE = "(none)"


class HttpMetrics:
    """ASGI middleware, outside of all others: counts answers when their head is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        started = False

        def answered(status: int) -> None:
            nonlocal started
            started = True
            method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
            # The route that the router has found; its path is the template.
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            metrics.HTTP_REQUESTS.labels(method, route, str(status)).inc()
            metrics.HTTP_RESPONSE.labels(method, route).observe(time.monotonic() - began)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start" and not started:
                answered(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counting)
        except Exception as error:
            if not started:
                answered(500)  # what the server makes of it, outside of all middleware
            if _reader_is_stuck(error):
                metrics.STREAM_DROPS.inc()
            raise


def _reader_is_stuck(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_reader_is_stuck(one) for one in error.exceptions)
    return isinstance(error, SendTimeoutError)


class FleetReadings(Collector):
    """Jobs and workers as the rows have them, and whether database and Redis answer.

    Every API process shows the same, so Prometheus takes the max. Where the database is away there are no numbers
    rather than old ones.
    """

    def __init__(self, store: FleetStore, redis: Redis, registry: Registry) -> None:
        self._store = store
        self._redis = redis
        self._registry = registry
        self._fleet: Fleet | None = None
        self._redis_up = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def refresh(self) -> None:
        """Read everything, unless that was done a moment ago. Call before `collect`."""
        async with self._reading:
            if time.monotonic() - self._read_at < FRESH_S:
                return
            self._fleet, self._redis_up = await asyncio.gather(self._read_fleet(), self._ping())
            self._read_at = time.monotonic()

    async def _read_fleet(self) -> Fleet | None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._store.read()
        except Exception as error:
            if not (database_is_away(error) or isinstance(error, TimeoutError)):
                raise
            logger.warning("the queue cannot be read for /metrics: %s", error or "the database is too slow")
            return None

    async def _ping(self) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._redis.ping()
        except Exception as error:
            if not (redis_is_away(error) or isinstance(error, TimeoutError)):
                raise
            return False
        return True

    def collect(self) -> Iterable[Metric]:
        fleet, models = self._fleet, self._registry.models
        yield metrics.DATABASE_UP.family([((), float(fleet is not None))])
        yield metrics.REDIS_UP.family([((), float(self._redis_up))])
        yield metrics.WORKER_SLOTS.family([((name,), model.slots) for name, model in models.items()])
        if fleet is None:
            return
        # Zero is shown too: a series that ends tells nothing.
        assert metrics.PRIORITY.values is not None
        jobs = [(model, priority) for model in models for priority in metrics.PRIORITY.values]
        jobs += [key for key in {*fleet.waiting, *fleet.running} if key[0] == metrics.OTHER]
        workers = [(model, state.value) for model in models for state in WorkerState]
        yield metrics.JOBS_WAITING.family([(key, fleet.waiting[key]) for key in jobs])
        yield metrics.JOBS_RUNNING.family([(key, fleet.running[key]) for key in jobs])
        yield metrics.QUEUE_OLDEST_AGE.family([(key, fleet.oldest.get(key, 0.0)) for key in jobs])
        yield metrics.WORKERS.family([(key, fleet.workers[key]) for key in workers])
