"""What lies before a job: its place in the queue and the seconds until it starts, told without counting each time.

Counts are at most a second old. A place is exact when it is asked for alone; under load, when many ask within that
second, it is the place at the last count and what came through this process since.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from shared.job import Job, JobStatus
from shared.job_store import JobStore
from shared.outage import database_is_away

logger = logging.getLogger(__name__)

FRESH_S = 1.0


@dataclass(slots=True)
class _Count:
    value: float
    at: float


class _Counts:
    """Numbers that are asked for again when they are old; who asks meanwhile waits for the same answer."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Count] = {}
        self._asking: dict[Hashable, asyncio.Task[_Count]] = {}

    async def get(self, name: Hashable, ask: Callable[[], Awaitable[float]]) -> _Count:
        known = self._known.get(name)
        if known is not None and time.monotonic() - known.at < FRESH_S:
            return known
        if (asking := self._asking.get(name)) is None:
            asking = self._asking[name] = asyncio.create_task(self._ask(name, ask))
        return await asyncio.shield(asking)

    async def _ask(self, name: Hashable, ask: Callable[[], Awaitable[float]]) -> _Count:
        try:
            at = time.monotonic()
            self._known[name] = _Count(await ask(), at)
            return self._known[name]
        finally:
            del self._asking[name]


class Backlog:
    """Places and waits of queued jobs. Neither is worth an error: where the database is away, both are unknown."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._places = _Counts()
        self._rates = _Counts()

    async def submitted(self, job: Job) -> tuple[int | None, float | None]:
        """The place and the wait, in seconds, of a job that has just been submitted: it is its priority's last."""
        try:
            place = await self._places.get((job.model, job.priority), lambda: self._store.queue_position(job))
            position = int(place.value)
            place.value += 1
            return position, await self._wait(job, position)
        except Exception as error:
            return self._unknown(job, error)

    async def waiting(self, job: Job) -> tuple[int | None, float | None]:
        """The place and the wait of any job; neither for one that does not wait."""
        if job.status is not JobStatus.QUEUED:
            return None, None
        try:
            position = await self._store.queue_position(job)
            return position, await self._wait(job, position)
        except Exception as error:
            return self._unknown(job, error)

    async def _wait(self, job: Job, position: int) -> float | None:
        rate = await self._rates.get(job.model, lambda: self._store.service_rate(job.model))
        return round((position + 1) / rate.value, 1) if rate.value else None

    @staticmethod
    def _unknown(job: Job, error: Exception) -> tuple[None, None]:
        if not database_is_away(error):
            raise error
        logger.warning("job=%s its place in the queue cannot be told: %s", job.id, error)
        return None, None
