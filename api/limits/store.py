"""SQL about limits: the rows of the limits, and the tokens that jobs have used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Row, Text, bindparam, case, cast, delete, func, select, update
from sqlalchemy import insert as sql_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from api.keys.projects import ProjectIds
from api.limits.rules import Allowance, Limit, Measure, Mode, limit_name
from shared.domain.errors import Conflict
from shared.postgres.audit_store import record
from shared.postgres.engine import transaction
from shared.postgres.prepared import Prepared
from shared.postgres.tables import ApiKeyRow, JobRow, ProjectRow
from shared.postgres.usage_tables import LimitRow


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """A row of the limits, with the name of its project. None: it is not narrowed, or has no such value."""

    number: int
    project_id: int | None
    project: str | None
    key_id: int | None
    end_user: str | None
    model: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_jobs: int | None
    queued_jobs: int | None
    open_streams: int | None
    mode: str
    created_at: datetime

    @property
    def id(self) -> str:
        """Its id in the API."""
        return limit_name(self.number)

    def limit(self) -> Limit:
        """The limit as it is applied. Only rates can be soft."""
        soft = self.mode == Mode.SOFT
        values = {measure: getattr(self, measure) for measure in Measure}
        allowances = {
            measure: Allowance(value, soft, self.number) for measure, value in values.items() if value is not None
        }
        return Limit(self.project_id, self.key_id, self.end_user, self.model, allowances)


_COLUMNS: tuple[Any, ...] = (
    LimitRow.id,
    LimitRow.project_id,
    ProjectRow.name.label("project"),
    LimitRow.key_id,
    LimitRow.end_user,
    LimitRow.model,
    *(getattr(LimitRow, measure) for measure in Measure),
    LimitRow.mode,
    LimitRow.created_at,
)
_ALL = select(*_COLUMNS).join_from(LimitRow, ProjectRow, isouter=True)


def _count(name: str) -> ColumnElement[int]:
    """A count of a job's usage, without what was generated for a job that this one continued."""
    inherited = JobRow.decisions["cache"]["inherited"][name].astext
    return func.coalesce(cast(JobRow.usage[name].astext, BigInteger), 0) - func.coalesce(cast(inherited, BigInteger), 0)


_ENDED = Prepared(
    select(
        JobRow.id,
        # No engine has run jobs that have another one's answer.
        case(
            (JobRow.follows.is_not(None) | JobRow.answered_by.is_not(None), 0),
            else_=func.greatest(0, _count("prompt_tokens") + _count("completion_tokens")),
        ).label("tokens"),
    ).where(JobRow.id == func.any(bindparam("ids", type_=ARRAY(Text))), JobRow.finished_at.is_not(None))
)


class LimitStore(ProjectIds):
    """Limits in PostgreSQL."""

    async def all(self) -> list[StoredLimit]:
        """Return all limits."""
        return await self._all(_ALL.order_by(LimitRow.id), _stored)

    async def page(self, *, limit: int, after: int | None, project: str | None) -> list[StoredLimit]:
        """Return a page of limits, the newest first. `project`: only its own."""
        statement = _ALL.order_by(LimitRow.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(LimitRow.id < after)
        if project is not None:
            statement = statement.where(ProjectRow.name == project)
        return await self._all(statement, _stored)

    async def get(self, number: int) -> StoredLimit | None:
        """Return a limit; None if there is none."""
        return await self._one(_ALL.where(LimitRow.id == number), _stored)

    async def project_of_key(self, key_id: int) -> int | None:
        """The project of a key; None if there is no such key."""
        statement = select(ApiKeyRow.project_id).where(ApiKeyRow.id == key_id)
        return await self._one(statement, lambda row: int(row.project_id))

    async def create(self, values: Mapping[str, Any], *, by: int | None) -> int:
        """Create a limit; return its number. `by`: the operator's key.

        Raises:
            Conflict: there is a limit of this scope.
        """
        try:
            async with transaction(self._engine) as connection:
                inserted = await connection.execute(sql_insert(LimitRow).values(**values).returning(LimitRow.id))
                number = int(inserted.scalar_one())
                after = await _row(connection, number)
                await _record(connection, "limit.create", after, by=by, after=after)
        except IntegrityError as error:
            if "limits_of" in str(error.orig):
                raise Conflict("There is a limit for this project, key, end user and model; change that one.") from None
            raise
        return number

    async def change(self, number: int, values: Mapping[str, Any], *, by: int | None) -> bool:
        """Change a limit; False if there is none."""
        async with transaction(self._engine) as connection:
            before = await _row(connection, number, lock=True)
            if before is None:
                return False
            await connection.execute(update(LimitRow).where(LimitRow.id == number).values(**values))
            after = await _row(connection, number)
            await _record(connection, "limit.change", after, by=by, before=before, after=after)
        return True

    async def delete(self, number: int, *, by: int | None) -> bool:
        """Delete a limit; False if there is none."""
        async with transaction(self._engine) as connection:
            before = await _row(connection, number, lock=True)
            if before is None:
                return False
            await connection.execute(delete(LimitRow).where(LimitRow.id == number))
            await _record(connection, "limit.delete", before, by=by, before=before)
        return True

    async def tokens_of_ended(self, ids: Sequence[str]) -> dict[str, int]:
        """The tokens that engines have generated and read for those of these jobs that have ended, by id."""
        rows = await _ENDED.run(self._engine, {"ids": list(ids)})
        return {row.id: int(row.tokens) for row in rows}


async def _row(connection: AsyncConnection, number: int, *, lock: bool = False) -> Row[Any] | None:
    statement = _ALL.where(LimitRow.id == number)
    if lock:
        statement = statement.with_for_update(of=LimitRow)
    return (await connection.execute(statement)).first()


async def _record(
    connection: AsyncConnection,
    action: str,
    row: Row[Any] | None,
    *,
    by: int | None,
    before: Row[Any] | None = None,
    after: Row[Any] | None = None,
) -> None:
    assert row is not None
    await record(
        connection,
        key_id=by,
        action=action,
        object_id=limit_name(row.id),
        project_id=row.project_id,
        before=None if before is None else _audited(before),
        after=None if after is None else _audited(after),
    )


def _audited(row: Row[Any]) -> dict[str, Any]:
    """What the audit log has of a limit."""
    values = {name: value for name, value in row._mapping.items() if name not in ("id", "project_id", "created_at")}
    return values | {"key_id": None if row.key_id is None else f"key_{row.key_id}"}


def _stored(row: Row[Any]) -> StoredLimit:
    return StoredLimit(
        number=row.id,
        project_id=row.project_id,
        project=row.project,
        key_id=row.key_id,
        end_user=row.end_user,
        model=row.model,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrent_jobs=row.concurrent_jobs,
        queued_jobs=row.queued_jobs,
        open_streams=row.open_streams,
        mode=row.mode,
        created_at=row.created_at,
    )
