"""SQL that deletes what was derived from a conversation: its summaries, and the jobs that wrote them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, delete, func, literal, literal_column, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Text

from shared.domain.job import TERMINAL
from shared.postgres.job_purge import purge_jobs, purge_statement
from shared.postgres.tables import JobRow, SummaryRow

# As in the index `jobs_summaries`.
_IS_SUMMARY = literal_column("jobs.kind") == literal_column("'summary'")
_CONVERSATION = literal_column("jobs.decisions -> 'context' ->> 'conversation'", Text)
_DELETED = literal(["context", "deleted"], ARRAY(Text))
# Condition, as in the index `jobs_discarded`: the job's summary was deleted before the job had ended.
WAS_DISCARDED = and_(
    _IS_SUMMARY, literal_column("jobs.decisions -> 'context' ->> 'deleted'", Text) == literal_column("'true'")
)


async def delete_summaries(connection: AsyncConnection, project_id: int, conversation: str) -> Sequence[str]:
    """Delete the summaries of a conversation, and the input and output of the jobs that wrote them.

    Those that have not ended are marked: `was_deleted` is true for them, and whoever waits for them deletes them. To be
    run in a transaction of several statements. Returns the ids of the jobs.
    """
    jobs = and_(
        _IS_SUMMARY,
        JobRow.project_id == project_id,
        literal(conversation) == _CONVERSATION,
        JobRow.deleted_at.is_(None),
    )
    locked = select(JobRow.id).where(jobs).order_by(JobRow.id).with_for_update()
    await connection.execute(locked)  # in order: another job of the conversation may be deleted at the same time
    marked = (
        update(JobRow)
        .where(jobs, JobRow.status.not_in(TERMINAL))
        .values({JobRow.decisions: func.jsonb_set(JobRow.decisions, _DELETED, literal_column("'true'::jsonb"))})
    )
    await connection.execute(marked)
    purged = [row.id for row in await purge_jobs(connection, purge_statement(jobs))]
    # Last: what a transaction stored that has held one of the rows is visible now.
    rows = delete(SummaryRow).where(SummaryRow.project_id == project_id, SummaryRow.conversation == conversation)
    await connection.execute(rows)
    return purged


async def was_deleted(connection: AsyncConnection, jobs: Sequence[str]) -> bool:
    """Whether one of these jobs was deleted with its conversation. None will be until the transaction ends."""
    statement = (
        select(JobRow.deleted_at, JobRow.decisions["context"]["deleted"].as_boolean())
        .where(JobRow.id.in_(jobs))
        .with_for_update(read=True)
    )
    return any(deleted_at is not None or marked for deleted_at, marked in await connection.execute(statement))
