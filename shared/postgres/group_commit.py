"""Group commit: many small writes in few transactions.

There is no timer: a write starts at once while fewer than `WRITERS` batches are being written. Under load, a batch is
what arrived during one round trip and one fsync, up to a maximum size. Each caller waits for its own commit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.exc import DBAPIError

from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741  # an item; O is its outcome
O = TypeVar("O")  # noqa: E741

LIMIT = 256
# Batches written at the same time. With one, each write would wait for half of another commit on average.
WRITERS = 2
# Maximum weight of a batch of several items, in the unit of `weigh` (bytes): one step of the loop sends a batch.
MAX_WEIGHT = 1024 * 1024


class GroupCommit(Generic[I, O]):
    """Passes items that arrive together to one call of `write`, which returns one outcome per item, in order.

    If `write` raises an error, it must have written nothing.
    """

    def __init__(
        self, write: Callable[[Sequence[I]], Awaitable[Sequence[O]]], weigh: Callable[[I], int] = lambda _: 0
    ) -> None:
        self._write = write
        self._weigh = weigh
        self._waiting: list[tuple[I, asyncio.Future[O]]] = []
        self._writing: set[asyncio.Task[None]] = set()

    async def __call__(self, item: I) -> O:
        """Write an item; return its outcome once it is committed.

        If the caller is cancelled, an item that still waits is not written; a write that has begun is not stopped.

        Raises the errors of `write`.
        """
        outcome: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, outcome))
        if len(self._writing) < WRITERS:
            task = asyncio.create_task(self._write_all(), name="group-commit")
            self._writing.add(task)
        return await outcome

    async def _write_all(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._waiting:
                if any(outcome.done() for _, outcome in self._waiting):
                    self._waiting = [one for one in self._waiting if not one[1].done()]
                    continue
                count = self._batch()
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                await self._commit(batch)
        finally:
            # In the same step of the loop as the last check: an item that arrives later needs another task.
            self._writing.discard(task)

    def _batch(self) -> int:
        """The number of waiting items in the next batch: at least one."""
        weight = 0
        for count, (item, _) in enumerate(self._waiting[:LIMIT]):
            weight += self._weigh(item)
            if count and weight > MAX_WEIGHT:
                return count
        return min(len(self._waiting), LIMIT)

    async def _commit(self, batch: list[tuple[I, asyncio.Future[O]]]) -> None:
        try:
            outcomes = await self._write([item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1 and isinstance(error, DBAPIError) and not is_database_outage(error):
                logger.warning("a batch of %d writes failed, retrying them one by one: %s", len(batch), error)
                for one in batch:
                    await self._commit([one])
                return
            for _, outcome in batch:
                if not outcome.done():
                    outcome.set_exception(error)
            return
        except BaseException:
            for _, outcome in batch:
                outcome.cancel()
            raise
        for (_, outcome), result in zip(batch, outcomes, strict=True):
            if not outcome.done():
                outcome.set_result(result)
