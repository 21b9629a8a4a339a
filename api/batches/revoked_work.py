"""Cancels the work of revoked keys, if `HEADRACE_REVOKED_JOBS` says so."""

from __future__ import annotations

import logging
from collections.abc import Awaitable

from sqlalchemy import and_, func, select

from api.batches.batch import BatchStatus
from api.batches.service import BatchService
from api.jobs.service import JobService
from shared.domain.errors import Conflict, HeadraceError, NotFound
from shared.domain.job import JobStatus
from shared.postgres.store import Store, seconds
from shared.postgres.tables import ApiKeyRow, BatchRow, JobRow
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

# Work that was submitted before a key was revoked ends soon after; older revocations need not be looked at.
RECENT_S = 24 * 3600.0
CHUNK = 100
MIN_INTERVAL_S = 0.2


class RevokedWorkStore(Store):
    """SQL for the unfinished work of keys that were revoked recently: ids, with their projects."""

    async def jobs(self) -> list[tuple[str, int]]:
        """Return jobs, without those of batches, that are not being cancelled."""
        statement = (
            select(JobRow.id, JobRow.project_id)
            # The condition on the project selects the index of open jobs.
            .join(ApiKeyRow, and_(ApiKeyRow.project_id == JobRow.project_id, ApiKeyRow.id == JobRow.key_id))
            .where(
                ApiKeyRow.revoked_at > func.now() - seconds(RECENT_S),
                JobRow.finished_at.is_(None),
                JobRow.batch_id.is_(None),
                JobRow.status != JobStatus.CANCELLING.value,
            )
            .limit(CHUNK)
        )
        return await self._all(statement, lambda row: (row.id, row.project_id))

    async def batches(self) -> list[tuple[str, int]]:
        """Return batches that are not being cancelled or finalized."""
        statement = (
            select(BatchRow.id, BatchRow.project_id)
            .join(ApiKeyRow, ApiKeyRow.id == BatchRow.key_id)
            .where(
                ApiKeyRow.revoked_at > func.now() - seconds(RECENT_S),
                BatchRow.ended_at.is_(None),
                BatchRow.status.in_((BatchStatus.VALIDATING.value, BatchStatus.IN_PROGRESS.value)),
            )
            .limit(CHUNK)
        )
        return await self._all(statement, lambda row: (row.id, row.project_id))


class RevokedWork:
    """Cancels the unfinished jobs and batches of revoked keys. Any number of processes may do so at the same time.

    The work of a key that has expired goes on: a rotated key expires while its jobs run.
    """

    def __init__(self, store: RevokedWorkStore, jobs: JobService, batches: BatchService, *, interval_s: float) -> None:
        self._store = store
        self._jobs = jobs
        self._batches = batches
        self._interval_s = max(MIN_INTERVAL_S, interval_s)

    async def run(self) -> None:
        """Cancel until cancelled."""
        await run_periodically(self.cancel, "cancellation of revoked keys' jobs", interval_s=self._interval_s)

    async def cancel(self) -> int:
        """Cancel what is found now. Returns the number of jobs and batches."""
        jobs, batches = await self._store.jobs(), await self._store.batches()
        for job_id, project_id in jobs:
            logger.info("job=%s its key was revoked; cancelling", job_id)
            await self._attempt(f"job={job_id}", self._jobs.cancel(job_id, project_id))
        for batch_id, project_id in batches:
            logger.info("batch=%s its key was revoked; cancelling", batch_id)
            await self._attempt(f"batch={batch_id}", self._batches.cancel(batch_id, project_id))
        return len(jobs) + len(batches)

    @staticmethod
    async def _attempt(what: str, cancel: Awaitable[object]) -> None:
        try:
            await cancel
        except (NotFound, Conflict):
            pass  # it was deleted, or has ended, meanwhile
        except HeadraceError as error:  # the others are cancelled nevertheless
            logger.warning("%s cannot be cancelled: %s", what, error)
