"""SQL for the audit log: who has changed what, from what to what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.postgres.store import Store
from shared.postgres.tables import ApiKeyRow, ProjectRow
from shared.postgres.usage_tables import AuditRow

# No entry has these columns of rows: what authenticates a key, and what separates projects in engines' caches.
SECRETS = frozenset({"secret", "sha256", "salt"})


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change. `key_id` is None if it was made at the command line of the installation.

    `before` and `after` have the members that the change has given another value; `before` is None if it has created
    the object, and `after` if it has deleted it.
    """

    id: int
    at: datetime
    key_id: int | None
    key_name: str | None
    action: str
    object_id: str
    project: str | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


async def record(
    connection: AsyncConnection,
    *,
    key_id: int | None,
    action: str,
    object_id: str,
    project_id: int | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Record a change, in the transaction that makes it.

    `key_id`: the operator's key, None at the command line. `action`: the kind of object and the verb, such as
    `budget.create`. `before` and `after`: the object as JSON; numbers of type Decimal become texts. Of a change, only
    the members that differ are recorded, and nothing if none does. Secrets are left out.
    """
    old, new = _recorded(before), _recorded(after)
    if old is not None and new is not None:
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if not names:
            return
        old, new = ({name: values.get(name) for name in names} for values in (old, new))
    statement = insert(AuditRow).values(
        key_id=key_id, action=action, object_id=object_id, project_id=project_id, before=old, after=new
    )
    await connection.execute(statement)


def _recorded(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The values as JSON has them, so that those of rows and those of requests can be compared."""
    if values is None:
        return None
    shown = {name: value for name, value in values.items() if name not in SECRETS}
    recorded: dict[str, Any] = orjson.loads(orjson.dumps(shown, default=str, option=orjson.OPT_UTC_Z))
    return recorded


class AuditStore(Store):
    """Reads the audit log."""

    async def page(
        self,
        *,
        limit: int,
        after: int | None = None,
        project: str | None = None,
        key_id: int | None = None,
        action: str | None = None,
        object_id: str | None = None,
    ) -> list[AuditEntry]:
        """Return one page of entries, newest first. `action`: an action, or a kind of object such as `budget`."""
        statement = (
            select(*AuditRow.__table__.columns, ProjectRow.name.label("project"), ApiKeyRow.name.label("key_name"))
            .outerjoin(ProjectRow, ProjectRow.id == AuditRow.project_id)
            .outerjoin(ApiKeyRow, ApiKeyRow.id == AuditRow.key_id)
            .order_by(AuditRow.id.desc())
            .limit(limit)
        )
        if after is not None:
            statement = statement.where(AuditRow.id < after)
        if project is not None:
            # By the id, so that the index of a project's entries is used.
            of_project = select(ProjectRow.id).where(ProjectRow.name == project).scalar_subquery()
            statement = statement.where(AuditRow.project_id == of_project)
        if key_id is not None:
            statement = statement.where(AuditRow.key_id == key_id)
        if action is not None:
            of_kind = AuditRow.action.startswith(f"{action}.", autoescape=True)
            statement = statement.where(AuditRow.action == action if "." in action else of_kind)
        if object_id is not None:
            statement = statement.where(AuditRow.object_id == object_id)
        return await self._all(statement, _entry)


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at=row.at,
        key_id=row.key_id,
        key_name=row.key_name,
        action=row.action,
        object_id=row.object_id,
        project=row.project,
        before=row.before,
        after=row.after,
    )
