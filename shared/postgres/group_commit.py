"""Many small writes as few transactions: what is asked for while two are on their way goes with the next.

There is no timer: a write goes at once while fewer than `WRITERS` are on their way, and under load a batch is what
arrived during one round trip and one fsync, up to a number and a weight. Each caller waits for the commit of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.exc import DBAPIError

from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741  # an item, beside O, its outcome
O = TypeVar("O")  # noqa: E741

LIMIT = 256
# Batches on their way at once. One alone would let each write wait for half of another's commit before its own.
WRITERS = 2
# Of a batch that has more than one item; what `weigh` counts, bytes.
MAX_WEIGHT = 8 * 1024 * 1024


class GroupCommit(Generic[I, O]):
    """Gives items that arrive together to one call of `write`, which returns one outcome for each, in order.

    A `write` that raises has written nothing.
    """

    def __init__(
        self, write: Callable[[Sequence[I]], Awaitable[Sequence[O]]], weigh: Callable[[I], int] = lambda _: 0
    ) -> None:
        self._write = write
        self._weigh = weigh
        self._waiting: list[tuple[I, asyncio.Future[O]]] = []
        self._writing: set[asyncio.Task[None]] = set()

    async def __call__(self, item: I) -> O:
        """The item's outcome, once it is committed. A caller that is cancelled meanwhile does not stop its write.

        Raises what `write` raises.
        """
        outcome: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, outcome))
        if len(self._writing) < WRITERS:
            task = asyncio.create_task(self._write_all(), name="group-commit")
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        return await outcome

    async def _write_all(self) -> None:
        while self._waiting:
            count = self._batch()
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            await self._commit(batch)

    def _batch(self) -> int:
        """How many of those that wait go together: at least one."""
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
                logger.warning("%d writes cannot be made together, trying each alone: %s", len(batch), error)
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
