"""Checks the services that this process depends on."""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from shared.config.models.loader import Registry
from shared.postgres.job_store import JobStore
from shared.redis.write_check import check_writes

logger = logging.getLogger(__name__)

OK = "ok"


class ReadinessCheck:
    """Checks that the database and Redis accept writes, and that each model has a live worker.

    The check needs no key, so concurrent callers share one: they must not take the database's connections.
    """

    def __init__(self, store: JobStore, redis: Redis, registry: Registry) -> None:
        self._store = store
        self._redis = redis
        self._registry = registry
        self._running: asyncio.Task[dict[str, str]] | None = None

    async def run(self) -> dict[str, str]:
        """Return the state of each dependency by name: `OK`, or the problem."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._check(), name="readiness-check")
        return await asyncio.shield(self._running)

    async def _check(self) -> dict[str, str]:
        checks: dict[str, str] = {}
        workers: dict[str, int] | None = None
        try:
            workers = await self._store.live_workers()
            checks["database"] = OK if await self._store.is_writable() else "read-only"
        except (SQLAlchemyError, OSError) as error:
            logger.warning("PostgreSQL unavailable: %s", error)
            checks["database"] = "unavailable"
        try:
            await check_writes(self._redis)
            checks["redis"] = OK
        except (RedisError, OSError) as error:
            logger.warning("Redis unavailable: %s", error)
            checks["redis"] = "unavailable"
        for name in self._registry.models:
            if workers is None:
                checks[f"model {name}"] = "unknown"
            else:
                checks[f"model {name}"] = OK if workers.get(name) else "no live worker"
        return checks
