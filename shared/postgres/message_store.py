"""SQL about queued jobs whose message was lost, or was withheld by a worker that could not read the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Double,
    Integer,
    Select,
    SmallInteger,
    Text,
    bindparam,
    column,
    func,
    literal_column,
    select,
    true,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.errors import UnreadableRow
from shared.domain.priorities import Hint
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING, due
from shared.postgres.job_rows import COLUMNS, read_job
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, seconds
from shared.postgres.tables import JobRow, Timestamp, UpstreamCancellationRow


@dataclass(frozen=True, slots=True)
class Withheld:
    """A queued job that a worker withheld because its version could not read it."""

    job_id: str
    since: datetime


def _released(*conditions: ColumnElement[bool]) -> Prepared:
    """The next queued jobs of the models `models`, in the order of service. Jobs that a dispatcher withholds are not
    among them: they have no message that could be lost.
    """
    limit = bindparam("limit", type_=Integer)
    # An index has the order of each model's jobs, but not that of several models'.
    names = func.unnest(bindparam("models", type_=ARRAY(Text)))
    models = names.table_valued(column("model", Text)).render_derived(name="models")
    of_one = (
        select(JobRow.id, JobRow.model, JobRow.priority)
        .where(IS_QUEUED, JobRow.model == models.c.model, JobRow.dispatched_at.is_not(None), *conditions)
        .order_by(JobRow.priority, JobRow.id)
        .limit(limit)
        .lateral("of_one")
    )
    found = select(of_one).join_from(models, of_one, true())
    return Prepared(found.order_by(of_one.c.priority, of_one.c.id).limit(limit))


def _waiting() -> Prepared:
    older_than_s = bindparam("older_than_s", type_=Double)
    return _released(
        JobRow.priority.between(
            bindparam("most_urgent", type_=SmallInteger), bindparam("least_urgent", type_=SmallInteger)
        ),
        JobRow.created_at < func.now() - seconds(older_than_s),
        due(older_than_s),
    )


def _queued_before() -> Prepared:
    due_for_s = bindparam("due_for_s", type_=Double)
    requeued_at = sql_cast(type_coerce(JobRow.attempts, JSONB)[-1]["ended_at"].astext, Timestamp)
    long_ago = func.clock_timestamp() - seconds(due_for_s)
    return _released(
        JobRow.priority == bindparam("priority", type_=SmallInteger),
        JobRow.id < bindparam("before", type_=Text),
        JobRow.dispatched_at <= long_ago,
        due(due_for_s),
        func.coalesce(requeued_at <= long_ago, true()),
    )


def withheld_for(older_than_s: Any) -> Select[str, datetime | None]:
    """Select the queued jobs that a worker has withheld as unreadable for so long, the oldest first."""
    return (
        select(JobRow.id, JobRow.unreadable_at)
        .where(IS_QUEUED, JobRow.unreadable_at < func.now() - seconds(older_than_s))
        .order_by(JobRow.unreadable_at, JobRow.id)
    )


_WAITING = _waiting()
_QUEUED_BEFORE = _queued_before()
_ALL_WITHHELD = withheld_for(bindparam("withheld_for_s", type_=Double)).limit(bindparam("limit", type_=Integer))
_WITHHELD = Prepared(_ALL_WITHHELD)
_WITHHELD_AFTER = Prepared(
    _ALL_WITHHELD.where(
        tuple_(JobRow.unreadable_at, JobRow.id)
        > tuple_(bindparam("since", type_=Timestamp), bindparam("job", type_=Text))
    )
)


class MessageStore(Store):
    """Reads queued jobs without a message, and releases those that were withheld."""

    async def waiting(self, models: Sequence[str], *, limit: int, older_than_s: float, priorities: range) -> list[Hint]:
        """Return the next queued jobs of these models that were released to the queue, in the order of service.

        A deferred job is among them once it has been due for `older_than_s`: its worker sends its message by then.
        """
        parameters = {
            "models": list(models), "limit": limit, "older_than_s": older_than_s, "most_urgent": priorities[0],
            "least_urgent": priorities[-1],
        }  # fmt: skip
        return [_hint(row) for row in await _WAITING.run(self._engine, parameters)]

    async def queued_before(
        self, models: Sequence[str], priority: int, before: str, *, due_for_s: float, limit: int
    ) -> list[Hint]:
        """Return released, queued jobs that precede the job `before`, which was served: their messages were lost.

        A job that was deferred, requeued or released later is among them once it has been due for `due_for_s`.
        """
        parameters = {
            "models": list(models), "limit": limit, "due_for_s": due_for_s, "priority": priority, "before": before,
        }  # fmt: skip
        return [_hint(row) for row in await _QUEUED_BEFORE.run(self._engine, parameters)]

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
        if after is None:
            rows = await _WITHHELD.run(self._engine, {"withheld_for_s": older_than_s, "limit": limit})
        else:
            parameters = {"withheld_for_s": older_than_s, "limit": limit, "since": after.since, "job": after.job_id}
            rows = await _WITHHELD_AFTER.run(self._engine, parameters)
        return [Withheld(row.id, row.unreadable_at) for row in rows]

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


def _hint(row: Any) -> Hint:
    return Hint(row.id, row.model, row.priority)
