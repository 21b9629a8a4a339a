"""Corrects the tokens that jobs have taken from limits, once the jobs have ended.

The process that has taken them looks at the rows of its jobs: so it makes no difference whether a client is still
connected, and neither workers nor the statement that ends jobs have anything to do. If the process ends before a job,
what the job has taken counts until it leaves the window, a minute after it was taken.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Collection, Sequence

from api.limits.limiter import RateLimiter, Taken
from api.limits.store import LimitStore
from shared.domain.job import JobSummary
from shared.redis.rate_limits import Correction
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# What was taken has left the window after this time.
WINDOW_S = 62.0
# The time to the next look at a job is this part of the time since it was submitted.
SHARE = 0.2
# Jobs that are looked at together, and those that are remembered. Of others, the estimates stand.
MAX_LOOKUPS = 1000
MAX_JOBS = 100_000
# Corrections of one call.
MAX_CORRECTIONS = 500


class Settlement:
    """The jobs of this process that have taken tokens and have not ended."""

    def __init__(self, limiter: RateLimiter, store: LimitStore) -> None:
        self._limiter = limiter
        self._store = store
        # By the time of the next look: that, a number that orders equal times, the time of the submit, and the job.
        self._due: list[tuple[float, int, float, str, Taken]] = []
        self._numbers = itertools.count()
        self._corrections: list[Correction] = []

    def job_created(self, job: JobSummary, taken: Taken) -> None:
        """Correct what a new job has taken once it has ended."""
        if not taken.has_tokens:
            return
        if job.status.terminal:  # the response cache had its answer
            self._corrections += taken.settled(0)
            return
        self.jobs_created([job.id], [taken])

    def jobs_created(self, ids: Sequence[str], taken: Sequence[Taken]) -> None:
        """The same for several jobs that have not ended."""
        now = time.monotonic()
        for job_id, item in zip(ids, taken, strict=True):
            if item.has_tokens and len(self._due) < MAX_JOBS:
                heapq.heappush(self._due, (now + INTERVAL_S, next(self._numbers), now, job_id, item))

    def give_back(self, taken: Taken) -> None:
        """Return what was taken for a job that was not created."""
        self._corrections += taken.returned()

    def give_back_requests(self, taken: Taken) -> None:
        """Return the request of a job that was created for a call which failed. Its tokens are settled at its end."""
        self._corrections += taken.returned_requests()

    async def run(self) -> None:
        """Settle the jobs that have ended, until cancelled."""
        await run_periodically(self.settle, "settling rate limits", interval_s=INTERVAL_S)

    async def settle(self, *, everything: bool = False) -> None:
        """Look at the jobs that are due, and apply the corrections. `everything`: look at all jobs.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, OSError: the database is unavailable.
        """
        now = time.monotonic()
        found: list[tuple[float, int, float, str, Taken]] = []
        while self._due and len(found) < MAX_LOOKUPS and (everything or self._due[0][0] <= now):
            found.append(heapq.heappop(self._due))
        if found:
            try:
                used = await self._store.tokens_of_ended([job_id for *_, job_id, _ in found])
            except BaseException:
                self._remember(found, {}, now)
                raise
            for *_, job_id, taken in found:
                if job_id in used:
                    self._corrections += taken.settled(used[job_id])
            self._remember(found, used, now)
        await self.apply()

    async def apply(self) -> None:
        """Apply the corrections that are known now. Those that Redis does not accept are dropped."""
        while self._corrections:
            some, self._corrections = self._corrections[:MAX_CORRECTIONS], self._corrections[MAX_CORRECTIONS:]
            if not await self._limiter.settle(some):
                return
            await asyncio.sleep(0)

    def _remember(
        self, found: Sequence[tuple[float, int, float, str, Taken]], ended: Collection[str], now: float
    ) -> None:
        """Look again at those that have not ended, unless they can have nothing to correct any more."""
        for _, number, since, job_id, taken in found:
            age_s = now - since
            if job_id in ended or (taken.bounded and age_s > WINDOW_S + (taken.delay_s or 0)):
                continue
            heapq.heappush(self._due, (now + max(INTERVAL_S, SHARE * age_s), number, since, job_id, taken))
