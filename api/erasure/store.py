"""SQL that erases an end user's data: jobs, the request log, feedback, and what names the user.

Each statement is limited in size. What was erased does not name the user any more, so a repeated call finds the rest.
The rows of batches that have not ended keep the name, because their files are erased when they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Text,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from api.erasure.deliveries import erase_deliveries
from api.keys.projects import ProjectIds
from shared.domain.job import TERMINAL
from shared.domain.webhook_events import EventType
from shared.postgres.audit_store import record
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.job_purge import purge_statement, release_statement
from shared.postgres.quality_deletion import erase_feedback, erase_quality, is_one_of
from shared.postgres.quality_tables import FeedbackRow
from shared.postgres.request_log_tables import ExportRow, RequestBodyRow, RequestLogRow
from shared.postgres.summary_deletion import delete_summaries
from shared.postgres.tables import BatchRow, FileRow, IdempotencyKeyRow, JobRow
from shared.postgres.usage_tables import BudgetRow, BudgetWindowRow, LimitRow
from shared.postgres.webhook_tables import WebhookDeliveryRow

# Jobs, and rows of the request log, in one transaction.
PORTION = 200
# Exports that are listed.
MAX_EXPORTS = 1000
_NO_LOG = "none"
_BODIES = ("kept", "pending")
# In place of the name in the conditions of exports.
_ERASED = "[erased]"
_OF_BUDGETS = (EventType.BUDGET_THRESHOLD.value, EventType.BUDGET_EXCEEDED.value)


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that has not ended."""

    id: str
    in_batch: bool


@dataclass(frozen=True, slots=True)
class EndedBatch:
    """A batch that has ended, with jobs of the user: the files that exist of it, and the jobs."""

    id: str
    input_file_id: str | None
    result_file_ids: tuple[str, ...]
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Portion:
    """Jobs that were erased: their ids, those of others that went with them, and counts of rows by what they are."""

    job_ids: Sequence[str]
    others: Sequence[str] = ()
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Export:
    """An export of the request log that may have data of the user."""

    id: int
    created_at: datetime
    level: str
    rows: int | None


class ErasureStore(ProjectIds):
    """Finds and erases the data of end users, by the name that the project has for them."""

    async def open_jobs(self, project_id: int, end_user: str, after: str) -> list[OpenJob]:
        """A portion of the user's jobs that have not ended, in the order of their ids, after one of them.

        Nothing will be logged of them, and their content is deleted soon after their end.
        """
        found = (
            select(JobRow.id)
            .where(_of(project_id, end_user), JobRow.status.not_in(TERMINAL), JobRow.id > after)
            .order_by(JobRow.id)
            .limit(PORTION)
            .with_for_update()
            .cte("found")
        )
        marked = (
            update(JobRow)
            .where(JobRow.id.in_(select(found.c.id)))
            .values({JobRow.log_level: _NO_LOG})
            .returning(JobRow.id, JobRow.batch_id.is_not(None).label("in_batch"))
        )
        jobs = await self._all(marked, lambda row: OpenJob(row.id, row.in_batch))
        return sorted(jobs, key=lambda job: job.id)

    async def unended_batches(self, project_id: int, end_user: str) -> list[str]:
        """The batches with jobs of the user that have not ended."""
        statement = (
            select(JobRow.batch_id.label("id"))
            .join(BatchRow, BatchRow.id == JobRow.batch_id)
            .where(_of(project_id, end_user), BatchRow.ended_at.is_(None))
            .distinct()
        )
        return sorted(await self._all(statement, lambda row: str(row.id)))

    async def ended_batch(self, project_id: int, end_user: str, after: str) -> EndedBatch | None:
        """The next batch with jobs of the user that has ended, in the order of ids; None if there is none."""
        of_log = _of_log(project_id, end_user)
        jobs = union(
            select(JobRow.batch_id, JobRow.id).where(_of(project_id, end_user), JobRow.batch_id > after),
            select(RequestLogRow.batch_id, RequestLogRow.job_id).where(of_log, RequestLogRow.batch_id > after),
        ).subquery("of_user")
        statement = (
            select(
                BatchRow.id,
                _existing(BatchRow.input_file_id).label("input_file_id"),
                _existing(BatchRow.output_file_id).label("output_file_id"),
                _existing(BatchRow.error_file_id).label("error_file_id"),
                func.array_agg(jobs.c.id).label("job_ids"),
            )
            .join(jobs, jobs.c.batch_id == BatchRow.id)
            .where(BatchRow.ended_at.is_not(None))
            .group_by(BatchRow.id)
            .order_by(BatchRow.id)
            .limit(1)
        )
        return await self._one(
            statement,
            lambda row: EndedBatch(
                row.id,
                row.input_file_id,
                tuple(name for name in (row.output_file_id, row.error_file_id) if name is not None),
                tuple(row.job_ids),
            ),
        )

    async def jobs(
        self,
        project_id: int,
        end_user: str,
        unended: Sequence[str],
        *,
        in_batches: bool = False,
        batch_id: str | None = None,
    ) -> list[tuple[str, bool]]:
        """A portion of the user's jobs that are to be erased, and of each, whether other jobs may follow it.

        Those of batches that have not ended are left out. `in_batches`: only these, if they have ended and were not
        erased. `batch_id`: only those of this batch.
        """
        of_unended = and_(JobRow.batch_id.is_not(None), is_one_of(JobRow.batch_id, unended))
        if in_batches:
            condition = and_(of_unended, JobRow.status.in_(TERMINAL), JobRow.deleted_at.is_(None))
        else:
            condition = ~of_unended
        if batch_id is not None:
            condition = and_(condition, JobRow.batch_id == batch_id)
        may_lead = and_(JobRow.cache_key.is_not(None), JobRow.follows.is_(None), JobRow.status.in_(TERMINAL))
        statement = (
            select(JobRow.id, may_lead.label("may_lead"))
            .where(_of(project_id, end_user), condition)
            .order_by(JobRow.id)
            .limit(PORTION)
        )
        return await self._all(statement, lambda row: (str(row.id), bool(row.may_lead)))

    async def erase_jobs(self, project_id: int, job_ids: Sequence[str], *, keep_user: bool = False) -> Portion:
        """Erase jobs: the content of those that have ended, and the name of the user, unless `keep_user`.

        The content of the others is deleted soon after their end. Summaries of their conversations, idempotency keys,
        comments, judgements and labels go with the jobs.
        """
        ours = is_one_of(JobRow.id, job_ids)
        counts: dict[str, int] = {}
        async with transaction(self._engine) as connection:
            locked = select(JobRow.id, limit_idle()).where(ours).order_by(JobRow.id).with_for_update()
            await connection.execute(locked)
            rows = (await connection.execute(purge_statement(ours, JobRow.project_id == project_id))).all()
            counts["jobs"] = len(rows)
            has_ended = JobRow.status.in_(TERMINAL)
            values: dict[Any, Any] = {
                JobRow.log_level: case((has_ended, JobRow.log_level), else_=_NO_LOG),
                JobRow.webhook: case((has_ended, null()), else_=JobRow.webhook),
            }
            if not keep_user:
                values[JobRow.end_user] = None
            await connection.execute(update(JobRow).where(ours, JobRow.project_id == project_id).values(values))
            others: list[str] = []
            for conversation in sorted({row.conversation for row in rows if row.conversation is not None}):
                others += await delete_summaries(connection, project_id, conversation)
            keys = delete(IdempotencyKeyRow).where(
                IdempotencyKeyRow.project_id == project_id, is_one_of(IdempotencyKeyRow.job_id, job_ids)
            )
            counts["idempotency_keys"] = (await connection.execute(keys)).rowcount
            counts["webhook_deliveries"] = await erase_deliveries(connection, project_id, job_ids)
            others += await erase_quality(connection, project_id, job_ids, counts)
        await self._changes(release_statement(or_(ours, is_one_of(JobRow.id, others))))
        return Portion(job_ids, others, counts)

    async def erase_log(
        self, project_id: int, end_user: str, unended: Sequence[str], *, batch_id: str | None = None
    ) -> dict[str, int] | None:
        """Erase a portion of the user's rows in the request log; None if there is none. `batch_id`: of this batch.

        The rows remain, without the name of the user and without bodies. Those of batches that have not ended keep the
        name.
        """
        of_unended = and_(RequestLogRow.batch_id.is_not(None), is_one_of(RequestLogRow.batch_id, unended))
        key = (RequestLogRow.job_id, RequestLogRow.ended_at)
        found = (
            select(*key)
            .where(_of_log(project_id, end_user), or_(~of_unended, RequestLogRow.body.in_(_BODIES)))
            .order_by(RequestLogRow.ended_at, RequestLogRow.job_id)
            .limit(PORTION)
            .with_for_update()
        )
        if batch_id is not None:
            found = found.where(RequestLogRow.batch_id == batch_id)
        async with transaction(self._engine) as connection:
            statement = (
                update(RequestLogRow)
                .where(tuple_(*key).in_(found))
                .values(
                    end_user=case((of_unended, RequestLogRow.end_user), else_=null()),
                    body=case((RequestLogRow.body.in_(_BODIES), "erased"), else_=RequestLogRow.body),
                )
                .returning(*key, RequestLogRow.conversation)
            )
            rows = (await connection.execute(statement)).all()
            if not rows:
                return None
            # A statement of its own: it sees the bodies that were written while the one above waited for a lock.
            bodies = delete(RequestBodyRow).where(
                tuple_(RequestBodyRow.job_id, RequestBodyRow.ended_at).in_([(row.job_id, row.ended_at) for row in rows])
            )
            counts = {"log_rows": len(rows), "log_bodies": (await connection.execute(bodies)).rowcount}
            conversations = sorted({row.conversation for row in rows if row.conversation is not None})
            about = and_(FeedbackRow.project_id == project_id, is_one_of(FeedbackRow.conversation, conversations))
            counts["feedback"] = await erase_feedback(connection, about)
            # Jobs whose rows were deleted after their retention have these still.
            job_ids = [row.job_id for row in rows]
            await erase_quality(connection, project_id, job_ids, counts)
            counts["webhook_deliveries"] = await erase_deliveries(connection, project_id, job_ids)
        return counts

    async def erase_author(self, project_id: int, end_user: str) -> dict[str, int]:
        """Erase what the user has written as feedback, and the name where feedback, budgets, their events and exports
        have it."""
        by_user = and_(FeedbackRow.project_id == project_id, FeedbackRow.author == end_user)
        anonymous = aliased(FeedbackRow)
        same = exists().where(
            anonymous.project_id == FeedbackRow.project_id,
            anonymous.job_id.is_not_distinct_from(FeedbackRow.job_id),
            anonymous.conversation.is_not_distinct_from(FeedbackRow.conversation),
            anonymous.metric == FeedbackRow.metric,
            anonymous.author == "",
        )
        async with transaction(self._engine) as connection:
            erased = await erase_feedback(connection, by_user)
            erased += (await connection.execute(delete(FeedbackRow).where(by_user, same))).rowcount
            await connection.execute(update(FeedbackRow).where(by_user).values(author=""))
            # What was spent remains in the windows, under a name that is nobody's.
            budgets = select(BudgetRow.id).where(BudgetRow.project_id == project_id)
            windows = (
                update(BudgetWindowRow)
                .where(BudgetWindowRow.end_user == end_user, BudgetWindowRow.budget_id.in_(budgets))
                .values(end_user=func.concat("erased-", cast(BudgetWindowRow.id, Text)))
            )
            # Exports that somebody has made of the user's requests.
            erased_filters = ExportRow.filters.concat(cast(literal({"end_user": _ERASED}, JSONB), JSONB))
            exports = (
                update(ExportRow)
                .where(_may_have(project_id), ExportRow.filters["end_user"].astext == end_user)
                .values(filters=erased_filters)
            )
            await connection.execute(exports)
            row = WebhookDeliveryRow
            data: Any = row.data
            of_user = and_(row.project_id == project_id, row.type.in_(_OF_BUDGETS), data["end_user"].astext == end_user)
            nobody = literal_column("'{\"end_user\": null}'::jsonb", JSONB)
            events = update(row).where(of_user).values(data=data.op("||")(nobody))
            return {
                "feedback": erased,
                "budget_windows": (await connection.execute(windows)).rowcount,
                "webhook_deliveries": (await connection.execute(events)).rowcount,
            }

    async def exports(self, project_id: int) -> list[Export]:
        """The exports that may have data of the project's users, newest first."""
        statement = (
            select(ExportRow.id, ExportRow.created_at, ExportRow.level, ExportRow.rows)
            .where(_may_have(project_id))
            .order_by(ExportRow.id.desc())
            .limit(MAX_EXPORTS)
        )
        return await self._all(statement, lambda row: Export(row.id, row.created_at, row.level, row.rows))

    async def named_in(self, project_id: int, end_user: str) -> list[str]:
        """The budgets and limits that operators have created for the user."""
        budgets = select(func.concat("budget_", cast(BudgetRow.id, Text)).label("name")).where(
            BudgetRow.project_id == project_id, BudgetRow.end_user == end_user
        )
        limits = select(func.concat("limit_", cast(LimitRow.id, Text)).label("name")).where(
            LimitRow.project_id == project_id, LimitRow.end_user == end_user
        )
        return [*await self._all(budgets, lambda row: row.name), *await self._all(limits, lambda row: row.name)]

    async def record(
        self, key_id: int, project_id: int, name: str, counts: Mapping[str, int], others: Sequence[str] = ()
    ) -> None:
        """Note in the audit log that a user's data was erased. `name` must not be the user's.

        `others`: names of the same user in entries that were or will be made with another key.
        """
        after: dict[str, Any] = {**counts, **({"also_named": [*others]} if others else {})}
        async with transaction(self._engine) as connection:
            await record(
                connection, key_id=key_id, action="user.erase", object_id=name, project_id=project_id, after=after
            )


def _of(project_id: int, end_user: str) -> ColumnElement[bool]:
    # As in the index `jobs_end_user`.
    return and_(JobRow.project_id == project_id, JobRow.end_user == end_user)


def _of_log(project_id: int, end_user: str) -> ColumnElement[bool]:
    return and_(RequestLogRow.project_id == project_id, RequestLogRow.end_user == end_user)


def _may_have(project_id: int) -> ColumnElement[bool]:
    """Condition: the export may have data of the project's users."""
    return or_(ExportRow.project_id == project_id, ExportRow.project_id.is_(None))


def _existing(file_id: Any) -> Any:
    return select(FileRow.id).where(FileRow.id == file_id).scalar_subquery()
