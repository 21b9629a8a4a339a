"""SQL about queued jobs whose message was lost, or was withheld by a worker that could not read the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    func,
    literal_column,
    select,
    true,
    tuple_,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.errors import UnreadableRow
from shared.domain.priorities import Hint
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING, due
from shared.postgres.job_rows import COLUMNS, read_job
from shared.postgres.store import Store, seconds
from shared.postgres.tables import JobRow, Timestamp, UpstreamCancellationRow


@dataclass(frozen=True, slots=True)
class Withheld:
    """A queued job that a worker withheld because its version could not read it."""

    job_id: str
    since: datetime


class MessageStore(Store):
    """Reads queued jobs without a message, and releases those that were withheld."""

    async def waiting(self, models: Sequence[str], *, limit: int, older_than_s: float, priorities: range) -> list[Hint]:
        """Return the next queued jobs of these models that were released to the queue, in the order of service.

        A deferred job is among them once it has been due for `older_than_s`: its worker sends its message by then.
        """
        return await self._released(
            models,
            JobRow.priority.between(priorities[0], priorities[-1]),
            JobRow.created_at < func.now() - seconds(older_than_s),
            due(older_than_s),
            limit=limit,
        )

    async def queued_before(
        self, models: Sequence[str], priority: int, before: str, *, due_for_s: float, limit: int
    ) -> list[Hint]:
        """Return released, queued jobs that precede the job `before`, which was served: their messages were lost.

        A job that was deferred, requeued or released later is among them once it has been due for `due_for_s`.
        """
        requeued_at = sql_cast(type_coerce(JobRow.attempts, JSONB)[-1]["ended_at"].astext, Timestamp)
        long_ago = func.clock_timestamp() - seconds(due_for_s)
        return await self._released(
            models,
            JobRow.priority == priority,
            JobRow.id < before,
            JobRow.dispatched_at <= long_ago,
            due(due_for_s),
            func.coalesce(requeued_at <= long_ago, True),
            limit=limit,
        )

    async def _released(self, models: Sequence[str], *conditions: ColumnElement[bool], limit: int) -> list[Hint]:
        """Return queued jobs of these models in the order of service. Jobs that a dispatcher withholds are not among
        them: they have no message that could be lost."""

        def of(model: str) -> Any:
            return (
                select(JobRow.id, JobRow.model, JobRow.priority)
                .where(
                    IS_QUEUED,
                    JobRow.model == model,
                    JobRow.dispatched_at.is_not(None),
                    *conditions,
                )
                .order_by(JobRow.priority, JobRow.id)
                .limit(limit)
            )

        if len(models) == 1:
            return await self._all(of(models[0]), _hint)
        # An index has the order of each model's jobs, but not that of several models'.
        found = union_all(*(select(of(model).subquery()) for model in models)).subquery()
        ordered = select(found).order_by(found.c.priority, found.c.id).limit(limit)
        return await self._all(ordered, _hint)

    async def has_unfinished(self, model: str) -> bool:
        """Whether a model has jobs that run anywhere, or that are queued and can be read by this version, or requests
        of its upstream that no worker has tried to cancel yet."""
        row = UpstreamCancellationRow
        # In the order of an index: otherwise PostgreSQL may expect to find a row soon in the whole table.
        queued = (
            select(true())
            .where(JobRow.model == model, IS_QUEUED, JobRow.unreadable_at.is_(None))
            .order_by(JobRow.priority, JobRow.id)
        )
        running = select(true()).where(JobRow.model == model, IS_RUNNING).order_by(JobRow.worker)
        uncancelled = select(true()).where(row.model == model, row.tries == 0).order_by(row.due_at)
        found = (one.limit(literal_column("1")).scalar_subquery() for one in (queued, running, uncancelled))
        async with self._engine.connect() as connection:
            return bool(await connection.scalar(select(func.coalesce(*found))))

    async def withheld(self, older_than_s: float, *, after: Withheld | None, limit: int) -> list[Withheld]:
        """Return the queued jobs that a worker withheld as unreadable, the oldest first: those after `after`."""
        statement = (
            select(JobRow.id, JobRow.unreadable_at)
            .where(IS_QUEUED, JobRow.unreadable_at < func.now() - seconds(older_than_s))
            .order_by(JobRow.unreadable_at, JobRow.id)
            .limit(limit)
        )
        if after is not None:
            statement = statement.where(tuple_(JobRow.unreadable_at, JobRow.id) > (after.since, after.job_id))
        return await self._all(statement, lambda row: Withheld(row.id, row.unreadable_at))

    async def release_if_readable(self, job_id: str) -> Hint | None:
        """Release a withheld job to the queue if this version can read it."""
        row = await self._first(select(*COLUMNS).where(JobRow.id == job_id, JobRow.unreadable_at.is_not(None)))
        if row is None:
            return None
        try:
            await read_job(row)
        except UnreadableRow:
            return None
        release = (
            update(JobRow)
            .where(JobRow.id == job_id, IS_QUEUED, JobRow.unreadable_at.is_not(None))
            .values({JobRow.unreadable_at: None, JobRow.dispatched_at: func.clock_timestamp()})
            .returning(JobRow.id, JobRow.model, JobRow.priority)
        )
        return await self._one(release, _hint)


def _hint(row: Row[Any]) -> Hint:
    return Hint(row.id, row.model, row.priority)
