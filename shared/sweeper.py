"""Rescues the jobs of silent workers. Every API and worker process runs one, so no single death stops it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from shared.ending import CANCELLED, LATE, NOT_STARTED, exhausted
from shared.job import JobStatus
from shared.job_store import JobStore
from shared.outage import is_outage
from shared.queue import Hint
from shared.unowned import UnownedJobs

logger = logging.getLogger(__name__)

# A key is remembered for a day, as other services do.
IDEMPOTENCY_KEY_S = 24 * 3600


class Sweeper:
    """Puts jobs back into the queue whose worker's lease is over, or ends them."""

    def __init__(
        self,
        store: JobStore,
        unowned: UnownedJobs,
        send: Callable[[Hint], None],
        *,
        interval_s: float,
        lease_s: float,
        max_attempts: int,
    ) -> None:
        self._store = store
        self._unowned = unowned
        self._send = send
        self._interval_s = interval_s
        self._lease_s = lease_s
        self._max_attempts = max_attempts

    async def run(self) -> None:
        """Sweep for ever; cancel to stop. Many may sweep at once: every step is guarded by the rows."""
        while True:
            await asyncio.sleep(self._interval_s * random.uniform(0.8, 1.2))
            try:
                await self.sweep()
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("cannot sweep, trying again: %s", error)
                # Workers could not renew their leases either; let them, before anything is taken from them.
                await asyncio.sleep(self._lease_s)

    async def sweep(self) -> int:
        """Rescue what is lost. Returns how many jobs were put back."""
        for job in await self._store.lost_to_end(self._max_attempts):
            if job.status is JobStatus.CANCELLING:
                await self._unowned.end(job, JobStatus.CANCELLED, CANCELLED)
            elif job.deaths < self._max_attempts - 1:
                await self._unowned.end(job, JobStatus.CANCELLED, LATE)
            else:
                await self._unowned.end(job, JobStatus.FAILED, exhausted(self._max_attempts))
        for job in await self._store.overdue():
            if job.missed_start:
                await self._unowned.end(job, JobStatus.EXPIRED, NOT_STARTED)
            else:
                await self._unowned.end(job, JobStatus.CANCELLED, LATE)
        await self._store.forget_idempotency_keys(IDEMPOTENCY_KEY_S)
        rescued = await self._store.requeue_lost(self._max_attempts)
        for hint in rescued:
            logger.warning("job=%s model=%s lost its worker; queued again", hint.job_id, hint.model)
            self._send(hint)
        return len(rescued)
