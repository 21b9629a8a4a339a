"""Changes of the rows of keys and projects, each with its entry in the audit log.

`by`: the key that makes the change; None: the command line of the installation.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.postgres.audit_store import record
from shared.postgres.tables import ApiKeyRow, ProjectRow

PROJECT = (ProjectRow.id, ProjectRow.name, ProjectRow.tier, ProjectRow.created_at)
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


async def insert_project(connection: AsyncConnection, by: int | None, name: str, tier: str | None = None) -> Any:
    """Create a project; return its `PROJECT` columns, None if there is one with this name."""
    statement = insert(ProjectRow).values(name=name, tier=tier)
    statement = statement.on_conflict_do_nothing(index_elements=[ProjectRow.name])
    row: Any = (await connection.execute(statement.returning(*PROJECT))).first()
    if row is None:
        return None
    created = {"name": name, "tier": tier}
    await record(connection, key_id=by, action="project.create", object_id=name, project_id=row.id, after=created)
    return row


async def change_tier(connection: AsyncConnection, by: int | None, name: str, tier: str | None) -> bool:
    """Change the tier of a project. False: there is no project with this name."""
    old = select(ProjectRow.id, ProjectRow.tier).where(ProjectRow.name == name).with_for_update(key_share=True)
    row = (await connection.execute(old)).first()
    if row is None:
        return False
    await connection.execute(update(ProjectRow).where(ProjectRow.id == row.id).values(tier=tier))
    await record(
        connection,
        key_id=by,
        action="project.change",
        object_id=name,
        project_id=row.id,
        before={"tier": row.tier},
        after={"tier": tier},
    )
    return True
