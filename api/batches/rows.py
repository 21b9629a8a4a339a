"""Conversion of batch rows, the claim of a batch that is due, and the query that counts a batch's jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Double, Text, bindparam, func, literal_column, select, update

from api.batches.batch import Batch, BatchStatus, BatchUsage, LineError, Position
from shared.domain.job import SUCCEEDED, known_fields
from shared.postgres.prepared import Prepared
from shared.postgres.store import readable, seconds
from shared.postgres.tables import BatchRow, JobRow

COLUMNS = (
    BatchRow.id,
    BatchRow.project_id,
    BatchRow.key_id,
    BatchRow.endpoint,
    BatchRow.input_file_id,
    BatchRow.completion_window,
    BatchRow.batch_metadata,
    BatchRow.output_expires_after_s,
    BatchRow.status,
    BatchRow.ending,
    BatchRow.errors,
    BatchRow.output_file_id,
    BatchRow.error_file_id,
    BatchRow.usage,
    BatchRow.created_at,
    BatchRow.expires_at,
    BatchRow.in_progress_at,
    BatchRow.finalizing_at,
    BatchRow.cancelling_at,
    BatchRow.ended_at,
    BatchRow.total,
    BatchRow.submitted,
    BatchRow.completed,
    BatchRow.failed,
    BatchRow.next_line,
    BatchRow.next_offset,
    (BatchRow.expires_at <= func.clock_timestamp()).label("expired"),
)

_DUE = (
    select(BatchRow.id)
    .where(BatchRow.ended_at.is_(None), BatchRow.due_at <= func.clock_timestamp())
    .order_by(BatchRow.due_at)
    .limit(literal_column("1"))
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
CLAIM = Prepared(
    update(BatchRow)
    .where(BatchRow.id == _DUE)
    .values(
        {
            BatchRow.driver: bindparam("new_driver", type_=Text),
            BatchRow.due_at: func.clock_timestamp() + seconds(bindparam("lease_s", type_=Double)),
        }
    )
    .returning(*COLUMNS)
)


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of a batch's jobs. `open` have not ended; `failed` have ended without success."""

    open: int
    completed: int
    failed: int


def to_batch(row: Any) -> Batch:
    """Convert a row of `COLUMNS`.

    Raises:
        UnreadableRow: this version cannot read it.
    """
    with readable("batch", row.id):
        return _batch(row)


def _batch(row: Any) -> Batch:
    return Batch(
        id=row.id,
        project_id=row.project_id,
        key_id=row.key_id,
        endpoint=row.endpoint,
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=BatchStatus(row.status),
        created_at=row.created_at,
        expires_at=row.expires_at,
        metadata=row.metadata,
        output_expires_after_s=row.output_expires_after_s,
        ending=BatchStatus(row.ending) if row.ending is not None else None,
        expired=row.expired,
        errors=tuple(LineError(**known_fields(LineError, error)) for error in row.errors or ()),
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        usage=BatchUsage(**known_fields(BatchUsage, row.usage)) if row.usage is not None else None,
        in_progress_at=row.in_progress_at,
        finalizing_at=row.finalizing_at,
        cancelling_at=row.cancelling_at,
        ended_at=row.ended_at,
        total=row.total,
        submitted=row.submitted,
        completed=row.completed,
        failed=row.failed,
        next=Position(row.next_line, row.next_offset),
    )


def tally_query(batch_id: str) -> Any:
    """Count a batch's jobs from its `settled_line` on, and separately those before the first unfinished one."""
    settled_line = select(BatchRow.settled_line).where(BatchRow.id == batch_id).scalar_subquery()
    recent = (
        select(JobRow.batch_line, JobRow.status, JobRow.finished_at)
        .where(JobRow.batch_id == batch_id, JobRow.batch_line >= settled_line)
        .cte("recent")
    )
    first_open = select(func.min(recent.c.batch_line)).where(recent.c.finished_at.is_(None)).scalar_subquery()
    ended, succeeded = recent.c.finished_at.is_not(None), recent.c.status.in_(SUCCEEDED)
    settled = func.coalesce(recent.c.batch_line < first_open, True)
    return select(
        func.count().filter(~ended).label("open"),
        func.count().filter(ended, succeeded).label("completed"),
        func.count().filter(ended, ~succeeded).label("failed"),
        func.count().filter(settled, succeeded).label("settled_completed"),
        func.count().filter(settled, ~succeeded).label("settled_failed"),
        func.coalesce(first_open, func.max(recent.c.batch_line) + 1).label("first_open"),
        settled_line.label("since"),
    ).select_from(recent)
