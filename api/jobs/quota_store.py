"""SQL that counts the open jobs of a project."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, bindparam, func, literal_column, select

from shared.domain.priorities import PRIORITY_STEPS
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobRow

_COUNT = Prepared(
    select(
        func.count().filter(IS_QUEUED).label("queued"),
        func.count().filter(IS_QUEUED, JobRow.priority < literal_column(str(PRIORITY_STEPS[1]))).label("urgent"),
        func.count().filter(IS_RUNNING).label("running"),
        func.coalesce(func.sum(JobRow.request_bytes), 0).label("request_bytes"),
    ).where(
        JobRow.project_id == bindparam("project", type_=BigInteger),
        # The conditions of the index `jobs_open`.
        JobRow.finished_at.is_(None),
        JobRow.batch_id.is_(None),
    )
)


@dataclass(frozen=True, slots=True)
class ProjectUsage:
    """What a project's jobs use, without those of batches. `urgent`: queued jobs of the most urgent priorities."""

    queued: int
    urgent: int
    running: int
    request_bytes: int


class QuotaStore(Store):
    """Counts the open jobs of projects in PostgreSQL."""

    async def usage(self, project_id: int) -> ProjectUsage:
        """Count what a project uses, by an index of open jobs."""
        (row,) = await _COUNT.run(self._engine, {"project": project_id})
        return ProjectUsage(row.queued, row.urgent, row.running, int(row.request_bytes))
