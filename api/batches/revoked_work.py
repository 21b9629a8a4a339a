"""Cancels the work of revoked keys, if `HEADRACE_REVOKED_JOBS` says so."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, false, func, literal_column, select, true, union_all

from api.batches.batch import BatchStatus
from api.batches.service import BatchService
from api.jobs.service import JobService
from shared.domain.errors import Conflict, HeadraceError, NotFound
from shared.domain.job import JobStatus
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, seconds
from shared.postgres.tables import ApiKeyRow, BatchRow, JobRow
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

# Work that was submitted before a key was revoked ends soon after; older revocations need not be looked at.
RECENT_S = 24 * 3600.0
CHUNK = 100
MIN_INTERVAL_S = 0.2


def _unfinished() -> Prepared:
    is_revoked = ApiKeyRow.revoked_at > func.now() - seconds(RECENT_S)
    chunk: ColumnElement[int] = literal_column(str(CHUNK))
    jobs = (
        select(JobRow.id, JobRow.project_id, false().label("is_batch"))
        # The condition on the project selects the index of open jobs.
        .join(ApiKeyRow, and_(ApiKeyRow.project_id == JobRow.project_id, ApiKeyRow.id == JobRow.key_id))
        .where(
            is_revoked,
            JobRow.finished_at.is_(None),
            JobRow.batch_id.is_(None),
            JobRow.status != JobStatus.CANCELLING.value,
        )
        .limit(chunk)
        .subquery("unfinished_jobs")
    )
    batches = (
        select(BatchRow.id, BatchRow.project_id, true().label("is_batch"))
        .join(ApiKeyRow, ApiKeyRow.id == BatchRow.key_id)
        .where(
            is_revoked,
            BatchRow.ended_at.is_(None),
            BatchRow.status.in_((BatchStatus.VALIDATING.value, BatchStatus.IN_PROGRESS.value)),
        )
        .limit(chunk)
        .subquery("unfinished_batches")
    )
    return Prepared(union_all(select(jobs), select(batches)))


_UNFINISHED = _unfinished()


@dataclass(frozen=True, slots=True)
class UnfinishedWork:
    """Ids of jobs and of batches, with their projects."""

    jobs: list[tuple[str, int]]
    batches: list[tuple[str, int]]


class RevokedWorkStore(Store):
    """SQL for the unfinished work of keys that were revoked recently."""

    async def unfinished(self) -> UnfinishedWork:
        """Return jobs, without those of batches, that are not being cancelled, and batches that are not being cancelled
        or finalized, at most `CHUNK` of each.
        """
        rows = await _UNFINISHED.run(self._engine, {})
        return UnfinishedWork(
            [(row.id, row.project_id) for row in rows if not row.is_batch],
            [(row.id, row.project_id) for row in rows if row.is_batch],
        )


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
        work = await self._store.unfinished()
        for job_id, project_id in work.jobs:
            logger.info("job=%s its key was revoked; cancelling", job_id)
            await self._attempt(f"job={job_id}", self._jobs.cancel(job_id, project_id))
        for batch_id, project_id in work.batches:
            logger.info("batch=%s its key was revoked; cancelling", batch_id)
            await self._attempt(f"batch={batch_id}", self._batches.cancel(batch_id, project_id))
        return len(work.jobs) + len(work.batches)

    @staticmethod
    async def _attempt(what: str, cancel: Awaitable[object]) -> None:
        try:
            await cancel
        except (NotFound, Conflict):
            pass  # it was deleted, or has ended, meanwhile
        except HeadraceError as error:  # the others are cancelled nevertheless
            logger.warning("%s cannot be cancelled: %s", what, error)
