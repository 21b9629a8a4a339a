"""Deletes jobs after their retention period. Every API process runs it, in small batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from api.jobs.retention_store import RetentionStore
from shared.redis.event_log import EventLog
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL_S = 30.0
# How often jobs are purged of which nothing is to be kept.
PURGE_INTERVAL_S = 10.0
# Rows per statement, and the pause between statements, which leaves room for other writers.
BATCH = 200
PAUSE_S = 0.1
# Time that clients have to read a job after its end, if nothing of it is to be kept. It is purged within a minute.
UNLOGGED_S = 45.0


class Retention:
    """Deletes jobs `retention_s` after their end (0: never), and summaries as long after their last use.

    Jobs of which nothing is to be kept (`shared.domain.log_level`) are purged within a minute after their end, as are
    those whose summaries were deleted before it. Answers that deleted jobs share with others through the response cache
    are deleted after the last of these.
    """

    def __init__(self, store: RetentionStore, logs: EventLog, metrics: Metrics, *, retention_s: float) -> None:
        self._store = store
        self._logs = logs
        self._metrics = metrics
        self._retention_s = retention_s

    async def run(self) -> None:
        """Sweep until cancelled."""
        await run_periodically(self.sweep, "retention sweep", interval_s=INTERVAL_S, jitter=0.2)

    async def run_purge(self) -> None:
        """Purge jobs of which nothing is to be kept, until cancelled."""
        await run_periodically(self.purge, "purge of unlogged jobs", interval_s=PURGE_INTERVAL_S, jitter=0.1)

    async def purge(self, *, unlogged_s: float = UNLOGGED_S) -> int:
        """Purge the jobs of which nothing is to be kept, and that are due. Returns their number."""
        purged = 0
        while job_ids := await self._store.unlogged(unlogged_s, BATCH):
            # Before the rows, by which the next round finds what this one could not delete.
            await self._logs.delete(*job_ids)
            done = await self._store.purge(job_ids)
            purged += done
            # Others have locked what is left of a portion: there may be more behind it, unless they have all of it.
            if len(job_ids) < BATCH or not done:
                break
            await asyncio.sleep(PAUSE_S)
        self._metrics.purged_jobs.inc(purged)
        return purged

    async def sweep(self) -> int:
        """Delete or purge all other jobs that are due. Returns their number."""
        await self._all(lambda: self._store.release_answers(BATCH))
        purged = await self._all(lambda: self._store.purge_discarded(BATCH))
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
