"""Checks the services that this process depends on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from shared.config.models.loader import Registry
from shared.domain.job import OpenBreaker, WorkerState
from shared.postgres.job_store import JobStore
from shared.redis.write_check import check_writes

logger = logging.getLogger(__name__)

OK = "ok"
# Does not make the process unready.
STARTING = "added, no worker yet"
WARMING = "no live worker, one fills its prompt cache"
LOADING = "no live worker, one starts its engine"
# Nor does an upstream that fails: other models are served, and the jobs of this one wait.
BREAKER_OPEN = "ok (upstream breaker open since "


class ReadinessCheck:
    """Checks that the database and Redis accept writes, and that each model has a live worker.

    A model that was added by a reload counts from its first worker on: the other models stay available meanwhile.

    The check needs no key, so concurrent callers share one: they must not take the database's connections.
    """

    def __init__(self, store: JobStore, redis: Redis, registry: Registry) -> None:
        self._store = store
        self._redis = redis
        self._registry = registry
        self._running: asyncio.Task[dict[str, str]] | None = None
        # Models that were added by a reload and have not had a worker yet.
        self._starting: set[str] = set()

    def added(self, models: Iterable[str]) -> None:
        """Note models that were added by a reload."""
        self._starting |= set(models)

    async def run(self) -> dict[str, str]:
        """Return the state of each dependency by name: `OK`, or the problem."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._check(), name="readiness-check")
        return await asyncio.shield(self._running)

    @staticmethod
    def is_ready(state: str) -> bool:
        """Whether a state that `run` returned does not make the process unready."""
        return state in (OK, STARTING) or state.startswith(BREAKER_OPEN)

    async def _check(self) -> dict[str, str]:
        checks: dict[str, str] = {}
        workers: dict[tuple[str, str], int] | None = None
        breakers: dict[str, OpenBreaker] = {}
        try:
            workers = await self._store.worker_states()
            breakers = await self._store.open_breakers()
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
        for name in self._registry.queues:
            if workers is None:
                checks[f"model {name}"] = "unknown"
            elif workers.get((name, WorkerState.READY)):
                self._starting.discard(name)
                checks[f"model {name}"] = _state(breakers.get(name))
            elif name in self._starting:
                checks[f"model {name}"] = STARTING
            else:
                checks[f"model {name}"] = _unserved(
                    [state for state in WorkerState if workers.get((name, state.value))]
                )
        return checks


def _unserved(states: list[WorkerState]) -> str:
    """The state of a model whose workers, if there are any, are all in these states."""
    if WorkerState.WARMING in states:
        return WARMING
    return LOADING if WorkerState.LOADING in states else "no live worker"


def _state(breaker: OpenBreaker | None) -> str:
    """The state of a model with a live worker."""
    if breaker is None:
        return OK
    return f"{BREAKER_OPEN}{breaker.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}: {breaker.reason})"
