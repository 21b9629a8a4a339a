"""SQL that deletes what was said about the answers of jobs: comments, judgements and labels.

If a job is deleted, the texts about its answer are deleted, and numbers remain: ratings, scores and labels. If the data
of its end user is erased, the scores and the labels are deleted too. All of it is to be run in a transaction of several
statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, delete, func, literal, literal_column, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.feedback import RATING
from shared.domain.job import TERMINAL
from shared.domain.judgements import JudgementState, RunKind
from shared.postgres.eval_run_ends import end_if_complete, lock_sets
from shared.postgres.job_purge import purge_statement
from shared.postgres.quality_tables import EvalRunRow, FeedbackRow, JudgementRow, LabelRow
from shared.postgres.tables import JobRow

_IS_LIVE = (
    select(EvalRunRow.id)
    .where(EvalRunRow.id == JudgementRow.run_id, EvalRunRow.kind == RunKind.LIVE.value)
    .correlate(JudgementRow)
    .exists()
)


def is_one_of(column: Any, values: Sequence[str]) -> ColumnElement[bool]:
    """Condition: the column has one of the values, however many there are."""
    condition: ColumnElement[bool] = column == func.any(literal([*values], ARRAY(Text)))
    return condition


async def delete_quality_texts(connection: AsyncConnection, project_id: int, job_id: str) -> Sequence[str]:
    """Delete the texts about the answer of a job that is deleted; ratings, scores and labels remain.

    Judgements that are still to be made will not be. Returns the ids of the judges' jobs whose content was deleted:
    the caller deletes their logs, because the purge of jobs whose level is `none` does not find them any more.
    """
    await erase_feedback(connection, and_(FeedbackRow.project_id == project_id, FeedbackRow.job_id == job_id))
    about = JudgementRow.item == job_id
    found = {*(await connection.execute(select(JudgementRow.judge_job_id).where(about))).scalars()}
    if not found:
        return []
    await connection.execute(lock_sets(select(JudgementRow.run_id).where(about)))
    is_pending = JudgementRow.state == JudgementState.PENDING.value
    # Also the jobs of judges that were submitted since the statement above.
    found |= {*await _erase_judgements(connection, and_(about, is_pending))}
    # After that: one that has ended meanwhile has its reason now.
    has_reason = and_(about, JudgementRow.reason.is_not(None))
    await connection.execute(update(JudgementRow).where(has_reason).values(reason=None))
    return await _end_judges(connection, sorted(one for one in found if one is not None))


async def erase_quality(
    connection: AsyncConnection, project_id: int, job_ids: Sequence[str], counts: dict[str, int]
) -> Sequence[str]:
    """Erase what was said of answers: comments, judgements and labels. Returns the ids of the judges' jobs."""
    about = and_(FeedbackRow.project_id == project_id, is_one_of(FeedbackRow.job_id, job_ids))
    _add(counts, "feedback", await erase_feedback(connection, about))
    of_jobs = is_one_of(JudgementRow.item, job_ids)
    await connection.execute(lock_sets(select(JudgementRow.run_id).where(of_jobs)))
    judged = await _erase_judgements(connection, of_jobs)
    _add(counts, "judgements", len(judged))
    labels = delete(LabelRow).where(is_one_of(LabelRow.item, job_ids))
    _add(counts, "labels", (await connection.execute(labels)).rowcount)
    judges = [job_id for job_id in judged if job_id is not None]
    await _end_judges(connection, judges)
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


async def _erase_judgements(connection: AsyncConnection, about: ColumnElement[bool]) -> Sequence[str | None]:
    """Erase judgements whose runs over sets the caller has locked. Returns the jobs of the judges, as far as they have
    any.

    Those of live runs are deleted. Runs over sets wait for a number of judgements: there, a row remains that has ended,
    so that the run ends, and the item is not judged if it is sent again.
    """
    deleted = delete(JudgementRow).where(about, _IS_LIVE).returning(JudgementRow.judge_job_id)
    judges = [*(await connection.execute(deleted)).scalars()]
    marked = (
        update(JudgementRow)
        .where(about, JudgementRow.erased_at.is_(None))
        .values(
            state=JudgementState.FAILED.value,
            score=None,
            reason=None,
            ended_at=func.coalesce(JudgementRow.ended_at, func.now()),
            erased_at=func.now(),
        )
        .returning(JudgementRow.run_id, JudgementRow.judge_job_id)
    )
    rows = (await connection.execute(marked)).all()
    for run_id in sorted({row.run_id for row in rows}):
        await connection.execute(end_if_complete(run_id))
    return [*judges, *(row.judge_job_id for row in rows)]


async def _end_judges(connection: AsyncConnection, judges: Sequence[str]) -> Sequence[str]:
    """Delete the content of judges' jobs. Returns the ids of those that had ended and still had it.

    Judges may wait for hours, with the texts in their requests. Those that do are ended as overdue, and their content
    is deleted within a minute after that, as that of all judges is.
    """
    if not judges:
        return []
    purged = (await connection.execute(purge_statement(is_one_of(JobRow.id, judges)))).scalars().all()
    is_open = and_(is_one_of(JobRow.id, judges), JobRow.status.not_in(TERMINAL))
    await connection.execute(update(JobRow).where(is_open).values(finish_before=func.now()))
    return purged


def _add(counts: dict[str, int], name: str, more: int) -> None:
    counts[name] = counts.get(name, 0) + more
