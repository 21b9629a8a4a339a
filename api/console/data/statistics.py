"""Keeps the statistics of ended jobs, from which the console draws its charts.

Reading the jobs themselves takes about 2 us each: a chart of the last hour would take a second at 150 jobs/s, each time
that it is drawn. So each minute is counted once, by one of the API processes, and a chart reads the counts and the
jobs that have ended since.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from api.console.data.job_counts import minute_of
from api.console.data.statistics_store import StatisticsStore
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

INTERVAL_S = 15.0
# A result is committed a moment after the time that it names, by the clock of its worker.
GRACE_S = 5.0
# Minutes that are counted again, because results were committed later: their worker had to wait for the database.
AGAIN = timedelta(minutes=5)
# What is counted when there are no statistics yet, after an upgrade or a long pause.
BACKFILL = timedelta(days=1)
# How many minutes one statement counts.
MINUTE = timedelta(minutes=1)
STEP = 10 * MINUTE
KEPT = timedelta(days=31)


class JobStatistics:
    """Counts each minute soon after its end. Every API process runs this, and one of them counts at a time."""

    def __init__(self, store: StatisticsStore) -> None:
        self._store = store

    async def run(self) -> None:
        """Count until cancelled."""
        await run_periodically(self.update, "job statistics", interval_s=INTERVAL_S, jitter=0.2, immediately=True)

    async def update(self, now: datetime | None = None) -> None:
        """Count the minutes that have ended and were not counted yet, and the last ones again."""
        now = datetime.now(UTC) if now is None else now
        end = minute_of(now - timedelta(seconds=GRACE_S))
        until = await self._store.counted_until()
        if until is not None and until >= end:
            return
        oldest = minute_of(now - BACKFILL)
        start = oldest if until is None else max(oldest, until - AGAIN)
        if end - start > STEP:
            # Most of a long time has no jobs in a new installation; counting it would take a second of CPU time.
            first = await self._store.first_ended(start)
            start = end - MINUTE if first is None else min(minute_of(first), end - MINUTE)
        while start < end:
            step = min(start + STEP, end)
            if not await self._store.count(start, step):
                return
            start = step
            await asyncio.sleep(0)
        await self._store.delete(now - KEPT)
