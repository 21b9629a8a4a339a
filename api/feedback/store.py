"""SQL of feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Row,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased

from shared.domain.feedback import MAX_BY_TOKEN, MAX_OF_TARGET, FeedbackSource
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.quality_tables import FeedbackRow
from shared.postgres.store import Store, build_readable, readable
from shared.postgres.tables import JobRow
from shared.postgres.usage_tables import UsageEventRow

# The room that statements without the lock leave. Those that write feedback about one answer at the same moment do not
# see one another: the limit holds as long as all processes together run fewer of them than this at once.
_UNCOUNTED = MAX_OF_TARGET // 2
# What feedback replaces: all but whose it is, what it is about, and when it was first given.
_REPLACED = ("value", "comment", "tags", "source", "model", "requested_model")
# What makes feedback another one, if it is given again.
_CONTENT = ("value", "comment", "tags")


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What feedback copies from a job."""

    id: str
    project_id: int
    model: str
    requested_model: str
    end_user: str | None


@dataclass(frozen=True, slots=True)
class NewFeedback:
    """Feedback about a job or a conversation of a project. `author` is '' if it is not known."""

    project_id: int
    job: JobFacts | None
    conversation: str | None
    metric: str
    author: str
    value: bool | float | str
    comment: str | None
    tags: Sequence[str]
    source: FeedbackSource


@dataclass(frozen=True, slots=True)
class Feedback:
    """Feedback as it is stored."""

    id: int
    job_id: str | None
    conversation: str | None
    metric: str
    author: str
    value: bool | float | str
    comment: str | None
    tags: Sequence[str]
    source: FeedbackSource
    model: str | None
    requested_model: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class FeedbackFilters:
    """Which feedback is listed; None: all."""

    project_id: int | None = None
    job_id: str | None = None
    conversation: str | None = None
    metric: str | None = None
    author: str | None = None
    start: datetime | None = None
    end: datetime | None = None


class FeedbackStore(Store):
    """Reads and writes feedback."""

    async def job(self, job_id: str) -> JobFacts | None:
        """What feedback copies from a job. Of a job whose row was deleted, the ledger has it."""
        of_row: Any = select(
            literal_column("1").label("place"),
            JobRow.project_id,
            JobRow.model,
            func.coalesce(JobRow.requested_model, JobRow.model).label("requested_model"),
            JobRow.end_user,
        ).where(JobRow.id == job_id)
        of_ledger: Any = select(
            literal_column("2"),
            UsageEventRow.project_id,
            UsageEventRow.model,
            UsageEventRow.requested_model,
            UsageEventRow.end_user,
        ).where(UsageEventRow.job_id == job_id, UsageEventRow.final, UsageEventRow.correction == 0)
        found = of_row.union_all(of_ledger).subquery()
        return await self._one(
            select(found).order_by(found.c.place).limit(1),
            lambda row: JobFacts(job_id, row.project_id, row.model, row.requested_model, row.end_user),
        )

    async def put(self, new: NewFeedback) -> tuple[Feedback, bool] | None:
        """Write feedback in place of that of the same author about the same metric.

        Returns it, and whether it is new; None if there is too much feedback about the answer or conversation, or too
        much that a token has given.
        """
        job_id = new.job.id if new.job is not None else None
        limit = MAX_BY_TOKEN if new.source is FeedbackSource.TOKEN else MAX_OF_TARGET
        if new.source is not FeedbackSource.TOKEN:
            # In one round trip instead of four: nobody has to wait while there is this much room.
            async with self._engine.connect() as connection:
                row = (await connection.execute(_put(new, job_id, limit - _UNCOUNTED))).first()
            if row is not None:
                return _feedback(row), row.is_new
        async with transaction(self._engine) as connection:
            # One after the other for each target, so that the limits hold.
            target = f"feedback {new.project_id} {job_id or new.conversation}"
            await connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(target, 0)), limit_idle()))
            row = (await connection.execute(_put(new, job_id, limit))).first()
        return None if row is None else (_feedback(row), row.is_new)

    async def page(self, filters: FeedbackFilters, *, limit: int, after: int | None) -> list[Feedback]:
        """Return feedback after `after`, the last given first. What this version cannot read is left out."""
        return build_readable(await self._all(_page(filters, limit, after), lambda row: row), _feedback)

    async def delete(self, feedback_id: int, project_id: int | None) -> bool:
        """Delete feedback of a project, or of any; return whether there was any."""
        statement = delete(FeedbackRow).where(FeedbackRow.id == feedback_id)
        if project_id is not None:
            statement = statement.where(FeedbackRow.project_id == project_id)
        return await self._changes(statement)


def _put(new: NewFeedback, job_id: str | None, limit: int) -> Any:
    """Write feedback, unless it is new and there are `limit` values already."""
    row = FeedbackRow
    other = aliased(FeedbackRow)
    same_target = and_(
        other.project_id == new.project_id,
        other.job_id == job_id if job_id is not None else other.job_id.is_(None),
        other.conversation == new.conversation if new.conversation is not None else other.conversation.is_(None),
    )
    own = exists().where(same_target, other.metric == new.metric, other.author == new.author)
    by_token = new.source is FeedbackSource.TOKEN
    counted = and_(same_target, other.source == FeedbackSource.TOKEN.value) if by_token else same_target
    number = select(func.count()).select_from(other).where(counted).scalar_subquery()
    values = {
        "project_id": new.project_id,
        "job_id": job_id,
        "conversation": new.conversation,
        "metric": new.metric,
        "author": new.author,
        "value": literal(new.value, JSONB),
        "comment": new.comment,
        "tags": list(new.tags),
        "source": new.source.value,
        "model": new.job.model if new.job is not None else None,
        "requested_model": new.job.requested_model if new.job is not None else None,
    }
    columns: list[Any] = [
        value if name == "value" else literal(value, getattr(row, name).type) for name, value in values.items()
    ]
    insert = upsert(row).from_select(list(values), select(*columns).where(or_(own, number < limit)))
    given = insert.excluded
    changes = or_(*(getattr(row, name).is_distinct_from(given[name]) for name in _CONTENT))
    return insert.on_conflict_do_update(
        index_elements=[row.project_id, row.job_id, row.conversation, row.metric, row.author],
        set_={
            **{name: given[name] for name in _REPLACED},
            "updated_at": case((changes, func.now()), else_=row.updated_at),
        },
    ).returning(*row.__table__.c, literal_column("xmax = 0", Boolean).label("is_new"))


def _page(filters: FeedbackFilters, limit: int, after: int | None) -> Select[Any]:
    row = FeedbackRow
    statement = select(row.__table__).order_by(row.created_at.desc(), row.id.desc()).limit(limit)
    for column, value in (
        (row.project_id, filters.project_id),
        (row.job_id, filters.job_id),
        (row.conversation, filters.conversation),
        (row.metric, filters.metric),
        (row.author, filters.author),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if filters.start is not None:
        statement = statement.where(row.created_at >= filters.start)
    if filters.end is not None:
        statement = statement.where(row.created_at < filters.end)
    if after is not None:
        # The last one may have been deleted since: then the page begins where the one before it was given.
        last = aliased(FeedbackRow)
        since = select(last.created_at).where(last.id <= after).order_by(last.id.desc()).limit(1).scalar_subquery()
        statement = statement.where(tuple_(row.created_at, row.id) < tuple_(since, after))
    return statement


def _feedback(row: Row[Any]) -> Feedback:
    with readable("feedback", str(row.id)):
        return Feedback(
            id=row.id,
            job_id=row.job_id,
            conversation=row.conversation,
            metric=row.metric,
            author=row.author,
            value=row.value,
            comment=row.comment,
            tags=tuple(row.tags),
            source=FeedbackSource(row.source),
            model=row.model,
            requested_model=row.requested_model,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
