"""Changes of the rows of keys and projects, each with its entry in the audit log.

`by`: the key that makes the change; None: the command line of the installation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.postgres.audit_store import record
from shared.postgres.tables import ApiKeyRow, ProjectRow

PROJECT = (ProjectRow.id, ProjectRow.name, ProjectRow.tier, ProjectRow.options, ProjectRow.created_at)
# What an operator changes of a project.
PROJECT_AUDITED = (ProjectRow.tier, ProjectRow.options)
# What the audit log has of a key, and what identifies it.
AUDITED = (
    ApiKeyRow.id,
    ApiKeyRow.project_id,
    ApiKeyRow.name,
    ApiKeyRow.scopes,
    ApiKeyRow.priority_floor,
    ApiKeyRow.expires_at,
    ApiKeyRow.revoked_at,
    ApiKeyRow.options,
)


async def change_key(
    connection: AsyncConnection, by: int | None, old: Row[Any], values: dict[Any, Any], *, action: str = "key.change"
) -> None:
    """Change the key of a row with the columns `AUDITED`, which is locked, and record the change."""
    changed = update(ApiKeyRow).where(ApiKeyRow.id == old.id).values(values).returning(*AUDITED)
    await record_key(connection, by, action, before=old, after=(await connection.execute(changed)).one())


async def record_key(
    connection: AsyncConnection,
    by: int | None,
    action: str,
    *,
    after: Row[Any],
    before: Row[Any] | None = None,
    **more: str,
) -> None:
    """Record what has become of a key, from rows with the columns `AUDITED`."""

    def recorded(row: Row[Any]) -> dict[str, Any]:
        return {column.key: getattr(row, column.key) for column in AUDITED[2:]}

    await record(
        connection,
        key_id=by,
        action=action,
        object_id=f"key_{after.id}",
        project_id=after.project_id,
        before=None if before is None else recorded(before),
        after={**recorded(after), **more},
    )


async def insert_project(
    connection: AsyncConnection,
    by: int | None,
    name: str,
    tier: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Create a project; return its `PROJECT` columns, None if there is one with this name."""
    statement = insert(ProjectRow).values(name=name, tier=tier, options=dict(options or {}))
    statement = statement.on_conflict_do_nothing(index_elements=[ProjectRow.name])
    row: Any = (await connection.execute(statement.returning(*PROJECT))).first()
    if row is None:
        return None
    created = {"name": name, "tier": tier, **({"options": row.options} if row.options else {})}
    await record(connection, key_id=by, action="project.create", object_id=name, project_id=row.id, after=created)
    return row


async def locked_project(connection: AsyncConnection, name: str) -> Row[Any] | None:
    """Lock a project that is to be changed; return its id and its `PROJECT_AUDITED`. None: there is none."""
    statement = select(ProjectRow.id, *PROJECT_AUDITED).where(ProjectRow.name == name).with_for_update(key_share=True)
    return (await connection.execute(statement)).first()


async def change_project(
    connection: AsyncConnection, by: int | None, name: str, old: Row[Any], values: Mapping[Any, Any]
) -> None:
    """Change the project of a row of `locked_project`, and record the change."""
    changed = update(ProjectRow).where(ProjectRow.id == old.id).values(dict(values)).returning(*PROJECT_AUDITED)
    new = (await connection.execute(changed)).one()
    before, after = ({column.key: getattr(row, column.key) for column in PROJECT_AUDITED} for row in (old, new))
    await record(
        connection,
        key_id=by,
        action="project.change",
        object_id=name,
        project_id=old.id,
        before=before,
        after=after,
    )
