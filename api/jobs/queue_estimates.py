"""What lies before a job: its place in the queue and the seconds until it starts, told without counting each time.

Counts are at most a second old, or, where the queue is so long that counting takes its time, as old as keeps the
database free of it. A place is exact when it is asked for alone; under load, when many ask within that second, it is
the place at the last count and what came through this process since. Places over a thousand are rounded down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from api.jobs.queue_store import EXACT, Order, Pace, QueueStore
from shared.config.models.loader import Registry
from shared.domain.job import Job, JobStatus
from shared.domain.priorities import is_batch
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

T = TypeVar("T")
FRESH_S = 1.0
# What took the database long is asked for that many times more rarely than it took.
EASE = 20


@dataclass(slots=True)
class _Answer(Generic[T]):
    value: T
    fresh_until: float


class _Answers(Generic[T]):
    """Answers that are asked for again when they are old; who asks meanwhile waits for the same one."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Answer[T]] = {}
        self._asking: dict[Hashable, asyncio.Task[_Answer[T]]] = {}

    async def get(self, name: Hashable, ask: Callable[[], Awaitable[T]]) -> _Answer[T]:
        known = self._known.get(name)
        if known is not None and time.monotonic() < known.fresh_until:
            return known
        if (asking := self._asking.get(name)) is None:
            asking = self._asking[name] = asyncio.create_task(self._ask(name, ask))
        return await asyncio.shield(asking)

    async def _ask(self, name: Hashable, ask: Callable[[], Awaitable[T]]) -> _Answer[T]:
        try:
            asked = time.monotonic()
            value = await ask()
            took = time.monotonic() - asked
            self._known[name] = _Answer(value, asked + max(FRESH_S, EASE * took))
            return self._known[name]
        finally:
            del self._asking[name]


class QueueEstimates:
    """Places and waits of queued jobs. Neither is worth an error: where the database is away, both are unknown."""

    def __init__(self, store: QueueStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._places: _Answers[int] = _Answers()
        self._orders: _Answers[dict[str, Order]] = _Answers()
        self._paces: _Answers[Pace] = _Answers()

    async def submitted(self, job: Job) -> tuple[int | None, float | None]:
        """The place and the wait, in seconds, of a job that has just been submitted: it is its priority's last."""
        try:
            place = await self._places.get((job.model, job.priority), lambda: self._place(job))
            position = place.value
            place.value += 1
            return position, await self.wait_s(job.model, job.priority, position)
        except Exception as error:
            return self._unknown(job, error)

    async def waiting(self, job: Job) -> tuple[int | None, float | None]:
        """The place and the wait of any job; neither for one that does not wait."""
        if job.status is not JobStatus.QUEUED:
            return None, None
        try:
            position = await self._place(job)
            return position, await self.wait_s(job.model, job.priority, position)
        except Exception as error:
            return self._unknown(job, error)

    async def orders(self, models: Sequence[str]) -> dict[str, Order]:
        """Who waits for these models. Raises where the database is away."""
        return (await self._orders.get(tuple(models), lambda: self._store.orders(models))).value

    async def wait_s(self, model: str, priority: int, place: int) -> float | None:
        """Seconds until the job at a place starts. Raises where the database is away."""
        pace = (await self._paces.get(model, lambda: self._store.pace(model))).value
        spec = self._registry.models.get(model)  # a job may wait for a model that is declared no more
        makes_room = spec is not None and spec.yields and not is_batch(priority)
        return pace.wait_s(place, pace.urgent if makes_room else pace.running)

    async def _place(self, job: Job) -> int:
        place = await self._store.place(job)
        if place < EXACT:
            return place
        order = (await self.orders([job.model]))[job.model]
        return order.place(job.priority, job.id, surely_waits=True) or place

    @staticmethod
    def _unknown(job: Job, error: Exception) -> tuple[None, None]:
        if not is_database_outage(error):
            raise error
        logger.warning("job=%s its place in the queue cannot be told: %s", job.id, error)
        return None, None
