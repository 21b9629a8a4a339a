"""Conditions on the rows of jobs that several statements share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
    Select,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    union,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.config.models.base import ADAPTERS
from shared.domain.job import RUNNING, JobStatus
from shared.postgres.store import seconds
from shared.postgres.tables import JobRow, WorkerRow

# With literals: if the status were a parameter, the generic plan, which PostgreSQL may use from the sixth execution on,
# could not use the partial indexes of queued and of running jobs.
IS_QUEUED = JobRow.status == literal_column(f"'{JobStatus.QUEUED.value}'")
IS_RUNNING = JobRow.status.in_([literal_column(f"'{status.value}'") for status in RUNNING])
# Condition on ended jobs. The number of an attempt says less: one that was only deferred has not run either.
HAS_RUN = JobRow.attempts != literal_column("'[]'::jsonb", JSONB)

_WITHOUT = bindparam("without", type_=ARRAY(Text))


def is_kept(item_id: Any) -> ColumnElement[bool]:
    """Condition: the id is not among those of the parameter `without`, an array."""
    kept: ColumnElement[bool] = item_id != func.all(_WITHOUT)
    return kept


def owned(job_id: str, attempt: int, worker: str) -> ColumnElement[bool]:
    """Condition: the job is running, and this attempt of this worker owns it."""
    return and_(
        JobRow.id == job_id,
        JobRow.attempt == attempt,
        JobRow.worker == worker,
        IS_RUNNING,
    )


def live_workers() -> Select[str]:
    """The ids of the workers whose lease has not expired."""
    return select(WorkerRow.id).where(WorkerRow.lease_expires_at > func.clock_timestamp())


def models_of_workers(*conditions: ColumnElement[bool]) -> CompoundSelect[str]:
    """The models that the workers under these conditions serve: their own, and its adapters, which they report."""
    adapters = WorkerRow.options[ADAPTERS]
    reported = case((func.jsonb_typeof(adapters) == "object", adapters), else_=literal_column("'{}'::jsonb", JSONB))
    return union(
        select(WorkerRow.model.label("model")).where(*conditions),
        select(func.jsonb_object_keys(reported)).where(*conditions),
    )


def overdue(started_at: Any = JobRow.started_at) -> ColumnElement[bool]:
    """Condition: a deadline of the job has passed. Once a job was started, only its finish deadline counts."""
    now = func.clock_timestamp()
    return or_(
        func.coalesce(and_(JobRow.start_before < now, started_at.is_(None)), False),
        func.coalesce(JobRow.finish_before < now, False),
    )


def due(for_s: Any = 0) -> ColumnElement[bool]:
    """Condition: the job is not deferred, or has been due again for this many seconds."""
    return or_(JobRow.not_before.is_(None), JobRow.not_before <= func.clock_timestamp() - seconds(for_s))


def not_held() -> ColumnElement[bool]:
    """Condition: no soft limit and no budget lets the job start only later. It may wait for a busy upstream."""
    return or_(due(), JobRow.deferred_since.is_not(None))
