"""The statements that delete the input and output of ended jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import CTE, JSON, ColumnElement, Row, and_, case, delete, func, literal_column, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from shared.domain.job import TERMINAL, JobStatus
from shared.domain.log_level import LogLevel
from shared.postgres.request_log import delete_bodies
from shared.postgres.tables import CachedAnswerRow, IdempotencyKeyRow, JobRow, ResponseRow

# In place of the digest of a request that was deleted.
DELETED_DIGEST = ""
_EMPTY = literal_column("'{}'::json", JSON)


def purge_statement(*guards: ColumnElement[bool]) -> Any:
    """Delete the input and output of ended jobs for which the guards hold.

    Their responses and their entries in the response cache are deleted too. Output and log of a job that the response
    cache may have given to others stay in its row, where nobody can read them but those others, until
    `release_statement` removes them.

    The rows remain, for accounting. The idempotency keys of the jobs remain too, so that they are not used again,
    without the digests of the requests. Returns the ids, the conversations of which there are summaries
    (`shared.postgres.summary_deletion`), the log levels, and when the jobs ended.

    What the request log has of the jobs remains: that is for `purge_jobs`.
    """
    purged = (
        update(JobRow)
        .where(*guards, JobRow.deleted_at.is_(None), JobRow.status.in_(TERMINAL))
        .values(
            request=_EMPTY,
            job_metadata=_EMPTY,
            output=case((MAY_BE_SHARED, JobRow.output)),
            log=case((MAY_BE_SHARED, JobRow.log)),
            error_message=None,
            error_param=None,
            deleted_at=func.now(),
        )
        .returning(
            JobRow.id,
            JobRow.decisions["context"]["conversation"].astext.label("conversation"),
            JobRow.log_level,
            JobRow.finished_at,
        )
        .cte("purged")
    )
    response = delete(ResponseRow).where(ResponseRow.job_id.in_(select(purged.c.id)))
    # As an array, by which the index is used, however many jobs the plan expects.
    ids = func.any(func.array(select(purged.c.id).scalar_subquery()))
    digests = update(IdempotencyKeyRow).where(IdempotencyKeyRow.job_id == ids).values(request_sha256=DELETED_DIGEST)
    return select(*purged.c).add_cte(
        response.cte("response"), delete_entries(purged).cte("entry"), digests.cte("digests")
    )


async def purge_jobs(
    connection: AsyncConnection, statement: Any, parameters: Mapping[str, Any] | None = None
) -> Sequence[Row[Any]]:
    """Run a `purge_statement`, and delete the bodies of its jobs from the request log. Returns the statement's rows.

    For jobs that somebody has deleted, whose text must not remain elsewhere. Those that have only become old have the
    retention of the request log there. To be run in a transaction of several statements.
    """
    rows = (await connection.execute(statement, parameters)).all()
    bodies = [(row.id, row.finished_at) for row in rows if row.log_level not in _WITHOUT_BODY]
    if bodies:
        await delete_bodies(connection, bodies)
    return rows


# Log levels of which there is no body for certain: a newer version may know others.
_WITHOUT_BODY = (None, *(level.value for level in LogLevel if not level.keeps_body))


# Condition: the response cache may have given the job's answer to others.
MAY_BE_SHARED = and_(
    JobRow.status == literal_column(f"'{JobStatus.COMPLETED.value}'"),
    or_(JobRow.cache_key.is_not(None), JobRow.entry_key.is_not(None)),
)
_HIT = aliased(JobRow, name="hit")
# Condition: no other job has the job's answer. Decisive only if an earlier statement has deleted the job: before, a
# statement that gives its answer to another one may be in progress.
# One job by the index: for an EXISTS, PostgreSQL could read all jobs.
IS_UNSHARED = (
    select(_HIT.id)
    .where(_HIT.answered_by == JobRow.id, _HIT.deleted_at.is_(None))
    .limit(literal_column("1"))
    .correlate(JobRow)
    .scalar_subquery()
    .is_(None)
)


def release_statement(*guards: ColumnElement[bool]) -> Any:
    """Delete output and log of deleted jobs for which the guards hold, if no other job has their answer any more."""
    return (
        update(JobRow)
        .where(*guards, JobRow.deleted_at.is_not(None), JobRow.log.is_not(None), IS_UNSHARED)
        .values({JobRow.output: None, JobRow.log: None})
    )


def delete_entries(jobs: CTE) -> Any:
    """Delete the entries of these jobs (`id`) in the response cache, in the order of other statements."""
    locked = (
        select(CachedAnswerRow.key)
        .where(CachedAnswerRow.job_id.in_(select(jobs.c.id)))
        .order_by(CachedAnswerRow.key)
        .with_for_update()
        .cte("locked_entries")
    )
    return delete(CachedAnswerRow).where(CachedAnswerRow.key.in_(select(locked.c.key)))
