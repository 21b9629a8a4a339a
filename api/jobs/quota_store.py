"""SQL that counts the open jobs of projects, and of their keys, end users and models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Text, bindparam, func, literal_column, select

from api.limits.rules import LimitScope
from shared.domain.priorities import PRIORITY_STEPS
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobRow

_COUNTS = (
    func.count().filter(IS_QUEUED).label("queued"),
    func.count().filter(IS_QUEUED, JobRow.priority < literal_column(str(PRIORITY_STEPS[1]))).label("urgent"),
    func.count().filter(IS_RUNNING).label("running"),
    func.coalesce(func.sum(JobRow.request_bytes), 0).label("request_bytes"),
)
_OPEN = (
    JobRow.project_id == bindparam("project", type_=BigInteger),
    # The conditions of the index `jobs_open`.
    JobRow.finished_at.is_(None),
    JobRow.batch_id.is_(None),
)

_NARROWED: dict[str, ColumnElement[bool]] = {
    "key": JobRow.key_id == bindparam("key", type_=BigInteger),
    "end_user": JobRow.end_user.is_not_distinct_from(bindparam("end_user", type_=Text)),
    "model": JobRow.model == bindparam("model", type_=Text),
}


@dataclass(frozen=True, slots=True)
class JobCounts:
    """The open jobs of a scope, without those of batches. `urgent`: queued jobs of the most urgent priorities."""

    queued: int
    urgent: int
    running: int
    request_bytes: int


class QuotaStore(Store):
    """Counts open jobs in PostgreSQL."""

    async def count(self, scope: LimitScope) -> JobCounts:
        """Count the open jobs of a scope, by the index of a project's open jobs."""
        values: dict[str, Any] = {"project": scope.project_id}
        if scope.key_id is not None:
            values["key"] = scope.key_id
        if scope.per_user:
            values["end_user"] = scope.end_user
        if scope.model is not None:
            values["model"] = scope.model
        (row,) = await _statement(tuple(values)).run(self._engine, values)
        return JobCounts(row.queued, row.urgent, row.running, int(row.request_bytes))


@cache
def _statement(names: tuple[str, ...]) -> Prepared:
    """The statement with these parameters."""
    return Prepared(select(*_COUNTS).where(*_OPEN, *(_NARROWED[name] for name in names if name in _NARROWED)))
