"""SQL that erases what refers to jobs: feedback, judgements, labels, and deliveries of webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, delete, func, literal, literal_column, or_, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.feedback import RATING
from shared.domain.job import TERMINAL
from shared.domain.response import response_id
from shared.domain.webhook_events import OF_JOBS, event_id
from shared.postgres.job_purge import purge_statement
from shared.postgres.quality_tables import FeedbackRow, JudgementRow, LabelRow
from shared.postgres.tables import JobRow
from shared.postgres.webhook_tables import WebhookDeliveryRow


def is_one_of(column: Any, values: Sequence[str]) -> ColumnElement[bool]:
    """Condition: the column has one of the values, however many there are."""
    condition: ColumnElement[bool] = column == func.any(literal([*values], ARRAY(Text)))
    return condition


async def erase_deliveries(connection: AsyncConnection, project_id: int, job_ids: Sequence[str]) -> int:
    """Delete deliveries of webhooks to the URLs that the requests have named. Those to endpoints have ids only."""
    row = WebhookDeliveryRow
    events = [
        event_id(event_type, object_id)
        for job_id in job_ids
        for event_type, object_id in (
            *((one, job_id) for one in OF_JOBS if one.group == "job.*"),
            *((one, response_id(job_id)) for one in OF_JOBS if one.group == "response.*"),
        )
    ]
    statement = delete(row).where(row.project_id == project_id, row.url.is_not(None), is_one_of(row.event_id, events))
    return (await connection.execute(statement)).rowcount


async def erase_quality(
    connection: AsyncConnection, project_id: int, job_ids: Sequence[str], counts: dict[str, int]
) -> Sequence[str]:
    """Erase what was said of answers: comments, judgements and labels. Returns the ids of the judges' jobs."""
    about = and_(FeedbackRow.project_id == project_id, is_one_of(FeedbackRow.job_id, job_ids))
    _add(counts, "feedback", await erase_feedback(connection, about))
    judgements = delete(JudgementRow).where(is_one_of(JudgementRow.item, job_ids)).returning(JudgementRow.judge_job_id)
    judged = (await connection.execute(judgements)).scalars().all()
    _add(counts, "judgements", len(judged))
    labels = delete(LabelRow).where(is_one_of(LabelRow.item, job_ids))
    _add(counts, "labels", (await connection.execute(labels)).rowcount)
    judges = [job_id for job_id in judged if job_id is not None]
    if judges:
        await connection.execute(purge_statement(is_one_of(JobRow.id, judges)))
        # Judges may wait for hours, with the texts in their requests. Those that do are ended as overdue, and their
        # content is deleted within a minute after that, as that of all judges is.
        is_open = and_(is_one_of(JobRow.id, judges), JobRow.status.not_in(TERMINAL))
        await connection.execute(update(JobRow).where(is_open).values(finish_before=func.now()))
    return judges


async def erase_feedback(connection: AsyncConnection, about: ColumnElement[bool]) -> int:
    """Delete feedback whose value is a text, and erase comments and tags of the others. Returns their number.

    Thumbs are words too, but always the same ones: they remain, so that rates do not change.
    """
    is_text = and_(FeedbackRow.metric != RATING, func.jsonb_typeof(FeedbackRow.value) == literal_column("'string'"))
    deleted = (await connection.execute(delete(FeedbackRow).where(about, is_text))).rowcount
    has_text = or_(FeedbackRow.comment.is_not(None), FeedbackRow.tags != literal_column("'{}'::text[]"))
    erased = update(FeedbackRow).where(about, has_text).values(comment=None, tags=[])
    return deleted + (await connection.execute(erased)).rowcount


def _add(counts: dict[str, int], name: str, more: int) -> None:
    counts[name] = counts.get(name, 0) + more
