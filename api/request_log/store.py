"""SQL of the bodies of the request log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Text,
    and_,
    bindparam,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased
from sqlalchemy.types import BigInteger

from api.request_log.content import JobContent
from shared.domain.log_level import LogLevel, stored_level
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.job_rows import OUTPUT, REQUEST
from shared.postgres.request_log_tables import DataKeyRow, RequestBodyRow, RequestLogRow
from shared.postgres.store import Records, Store
from shared.postgres.tables import JobRow, ProjectRow, Timestamp

# Identifies the advisory lock that writers of bodies share, and that those who drop partitions have for themselves.
_WRITERS = 0x6872_0006
# How long dropping waits for writers.
WRITERS_WAIT_MS = 10_000
# Rows of one statement that gives up their bodies.
MOST_GIVEN_UP = 5_000
# The backlog is counted up to this number.
MOST_COUNTED = 100_000
_IS_PENDING = RequestLogRow.body == literal_column("'pending'")
_SOURCE = aliased(JobRow, name="source")


@dataclass(frozen=True, slots=True)
class PendingBody:
    """A row of the log that waits for its body, and about the bytes of its job's content, compressed."""

    job_id: str
    ended_at: datetime
    project_id: int
    level: LogLevel
    size: int


@dataclass(frozen=True, slots=True)
class PendingContent:
    """The content of a job, and the options of its project, as stored."""

    content: JobContent
    project_options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SealedBody:
    """An encrypted body; None: it is lost."""

    pending: PendingBody
    data_key_id: int = 0
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The number of rows that wait for their bodies, up to `MOST_COUNTED`, and since when the first one does."""

    count: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class StoredBody:
    """What the tables have of a job's body. `sealed` is None if it was deleted, and `wrapped` if its key was."""

    job_id: str
    ended_at: datetime
    level: LogLevel
    state: str
    sealed: bytes | None
    day: date | None
    master: str | None
    wrapped: bytes | None


_SEALED = Records(
    "sealed",
    job_id=Text,
    ended_at=Timestamp,
    project_id=BigInteger,
    data_key_id=BigInteger,
    body=LargeBinary,
)
_DONE = Records("done", job_id=Text, ended_at=Timestamp, outcome=Text)


class RequestLogStore(Store):
    """Bodies in PostgreSQL. Methods with a connection run in the transaction of the caller.

    Times bound the partitions that a statement reads.
    """

    async def may_write(self, connection: AsyncConnection) -> bool:
        """Whether a transaction may write bodies now. False: partitions are to be dropped, which it would hold up.

        A transaction that writes bodies may take seconds, and as several processes write all the time, there would
        never be an instant without one.
        """
        return bool(await connection.scalar(select(func.pg_try_advisory_xact_lock_shared(_WRITERS))))

    @asynccontextmanager
    async def without_writers(self) -> AsyncIterator[None]:
        """Wait until no transaction writes bodies, and let none begin.

        Raises:
            DBAPIError: one takes longer than `WRITERS_WAIT_MS` (SQLSTATE 55P03).
        """
        async with transaction(self._engine) as connection:
            await connection.execute(select(func.set_config("lock_timeout", f"{WRITERS_WAIT_MS}", true())))
            await connection.execute(select(func.pg_advisory_xact_lock(_WRITERS), limit_idle()))
            yield

    async def lock_pending(
        self, connection: AsyncConnection, limit: int, since: datetime, without: Collection[date] = ()
    ) -> list[PendingBody]:
        """Lock rows of jobs that ended after `since` and wait for their bodies, without those that others have locked.

        The oldest ones first, without those of some days. Another process that writes bodies takes others.
        """
        days = [datetime.combine(day, time.min, UTC) for day in without]
        others = [~RequestLogRow.ended_at.between(day, day + timedelta(days=1)) for day in days]
        columns = (JobRow.request, JobRow.output, _SOURCE.output)
        size: Any = sum((func.coalesce(func.pg_column_size(one), 0) for one in columns), literal_column("0"))
        statement = (
            select(
                RequestLogRow.job_id,
                RequestLogRow.ended_at,
                RequestLogRow.project_id,
                RequestLogRow.level,
                size.label("size"),
                limit_idle(),
            )
            .outerjoin(JobRow, JobRow.id == RequestLogRow.job_id)
            .outerjoin(_SOURCE, _SOURCE.id == JobRow.answered_by)
            .where(_IS_PENDING, RequestLogRow.ended_at > since, *others)
            .order_by(RequestLogRow.ended_at)
            .limit(limit)
            .with_for_update(skip_locked=True, of=RequestLogRow)
        )
        return [
            PendingBody(row.job_id, row.ended_at, row.project_id, stored_level(row.level), row.size)
            for row in await connection.execute(statement)
        ]

    async def contents(self, connection: AsyncConnection, job_ids: Sequence[str]) -> dict[str, PendingContent]:
        """The contents of those of these jobs that have not been deleted."""
        statement = (
            select(
                JobRow.id,
                REQUEST,
                OUTPUT,
                sql_cast(JobRow.job_metadata, Text).label("metadata"),
                JobRow.error_message,
                ProjectRow.options,
            )
            .join(ProjectRow, ProjectRow.id == JobRow.project_id)
            .where(JobRow.id == func.any(literal([*job_ids], ARRAY(Text))), JobRow.deleted_at.is_(None))
        )
        return {
            row.id: PendingContent(
                JobContent(row.request, row.output, row.metadata, row.error_message), dict(row.options)
            )
            for row in await connection.execute(statement)
        }

    async def keep(self, connection: AsyncConnection, bodies: Sequence[SealedBody]) -> None:
        """Store bodies, and mark the rows of all as kept or lost."""
        kept = [one for one in bodies if one.body is not None]
        if kept:
            columns = ("job_id", "ended_at", "project_id", "data_key_id", "body")
            rows = select(*(getattr(_SEALED, name) for name in columns))
            insertion = upsert(RequestBodyRow).from_select(list(columns), rows).on_conflict_do_nothing()
            records = [
                {
                    "job_id": one.pending.job_id,
                    "ended_at": one.pending.ended_at,
                    "project_id": one.pending.project_id,
                    "data_key_id": one.data_key_id,
                    "body": one.body,
                }
                for one in kept
            ]
            await connection.execute(insertion, _SEALED.parameters(records))
        done = [
            {
                "job_id": one.pending.job_id,
                "ended_at": one.pending.ended_at,
                "outcome": "lost" if one.body is None else "kept",
            }
            for one in bodies
        ]
        times = [one["ended_at"] for one in done]
        statement = (
            update(RequestLogRow)
            .where(
                RequestLogRow.job_id == _DONE.job_id,
                RequestLogRow.ended_at == _DONE.ended_at,
                RequestLogRow.ended_at.between(bindparam("first", type_=Timestamp), bindparam("last", type_=Timestamp)),
                _IS_PENDING,
            )
            .values(body=_DONE.outcome)
        )
        await connection.execute(statement, {**_DONE.parameters(done), "first": min(times), "last": max(times)})

    async def backlog(self, since: datetime) -> Backlog:
        """Count the rows of jobs that ended after `since` and wait for their bodies."""
        found = (
            select(RequestLogRow.ended_at)
            .where(_IS_PENDING, RequestLogRow.ended_at > since)
            .order_by(RequestLogRow.ended_at)
            .limit(MOST_COUNTED)
            .subquery("pending")
        )
        statement = select(func.count().label("waiting"), func.min(found.c.ended_at).label("oldest"))
        row = await self._first(statement)
        assert row is not None
        return Backlog(row.waiting, row.oldest)

    async def give_up(self, before: datetime, limit: int = MOST_GIVEN_UP) -> int:
        """Mark some bodies of jobs that ended before a time as lost, if they were not written. Returns their number."""
        key = (RequestLogRow.job_id, RequestLogRow.ended_at)
        overdue = select(*key).where(_IS_PENDING, RequestLogRow.ended_at < before).limit(limit)
        statement = (
            update(RequestLogRow)
            .where(tuple_(*key).in_(overdue), RequestLogRow.ended_at < before, _IS_PENDING)
            .values(body="lost")
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).rowcount

    async def sizes(
        self, job_ids: Sequence[str], since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, int]:
        """The bytes of these jobs' bodies as they are stored, if the jobs ended in this time. No body is read."""
        statement = select(RequestBodyRow.job_id, func.pg_column_size(RequestBodyRow.body).label("size")).where(
            RequestBodyRow.job_id == func.any(literal([*job_ids], ARRAY(Text))),
            *_between(RequestBodyRow.ended_at, since, until),
        )
        return dict(await self._all(statement, lambda row: (str(row.job_id), int(row.size))))

    async def stored(
        self, job_ids: Sequence[str], since: datetime | None = None, until: datetime | None = None
    ) -> list[StoredBody]:
        """What the tables have of these jobs' bodies, if the jobs ended in this time."""
        bounds = _between(RequestLogRow.ended_at, since, until)
        body = and_(RequestBodyRow.job_id == RequestLogRow.job_id, RequestBodyRow.ended_at == RequestLogRow.ended_at)
        statement = (
            select(
                RequestLogRow.job_id,
                RequestLogRow.ended_at,
                RequestLogRow.level,
                RequestLogRow.body.label("state"),
                RequestBodyRow.body,
                DataKeyRow.day,
                DataKeyRow.master,
                DataKeyRow.wrapped,
            )
            .outerjoin(RequestBodyRow, body)
            .outerjoin(DataKeyRow, DataKeyRow.id == RequestBodyRow.data_key_id)
            .where(RequestLogRow.job_id == func.any(literal([*job_ids], ARRAY(Text))), *bounds)
        )
        return await self._all(statement, _stored)


def _between(ended_at: Any, since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    bounds: list[ColumnElement[bool]] = []
    if since is not None:
        bounds.append(ended_at >= since)
    if until is not None:
        bounds.append(ended_at <= until)
    return bounds


def _stored(row: Any) -> StoredBody:
    return StoredBody(
        job_id=row.job_id,
        ended_at=row.ended_at,
        level=stored_level(row.level),
        state=row.state,
        sealed=bytes(row.body) if row.body is not None else None,
        day=row.day,
        master=row.master,
        wrapped=bytes(row.wrapped) if row.wrapped is not None else None,
    )
