"""Deletes jobs after their retention period. Every API process runs it, in small batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from api.jobs.retention_store import RetentionStore
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

INTERVAL_S = 30.0
# Rows per statement, and the pause between statements, which leaves room for other writers.
BATCH = 200
PAUSE_S = 0.1
# Time that readers of a response with `store` false have to read it after its end.
UNSTORED_S = 60.0


class Retention:
    """Deletes jobs `retention_s` after their end (0: never), and summaries as long after their last use.

    Responses with `store` false are purged soon after their end, as are jobs whose summaries were deleted before it.
    Answers that deleted jobs share with others through the response cache are deleted after the last of these.
    """

    def __init__(self, store: RetentionStore, *, retention_s: float) -> None:
        self._store = store
        self._retention_s = retention_s

    async def run(self) -> None:
        """Sweep until cancelled."""
        await run_periodically(self.sweep, "retention sweep", interval_s=INTERVAL_S, jitter=0.2)

    async def sweep(self, *, unstored_s: float = UNSTORED_S) -> int:
        """Delete or purge all jobs that are due. Returns their number."""
        purged = await self._all(lambda: self._store.purge_unstored(unstored_s, BATCH))
        await self._all(lambda: self._store.release_answers(BATCH))
        purged += await self._all(lambda: self._store.purge_discarded(BATCH))
        deleted = 0
        if self._retention_s:
            deleted = await self._all(lambda: self._store.delete_ended(self._retention_s, BATCH))
            await self._all(lambda: self._store.delete_unused_summaries(self._retention_s, BATCH))
        if deleted:
            logger.info("deleted %d jobs that ended more than %d s ago", deleted, self._retention_s)
        return purged + deleted

    @staticmethod
    async def _all(step: Callable[[], Awaitable[int]]) -> int:
        count = done = await step()
        while done == BATCH:
            await asyncio.sleep(PAUSE_S)
            done = await step()
            count += done
        return count
