"""SQL for exports of the request log: what was exported by whom, so that it is known where a person's data may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, null, select, update

from api.keys.principal import Principal
from shared.domain.ids import number_of
from shared.domain.log_level import LogLevel
from shared.postgres.audit_store import record
from shared.postgres.engine import transaction
from shared.postgres.request_log_tables import ExportRow
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow

# The action of the audit log.
EXPORTED = "request.export"


@dataclass(frozen=True, slots=True)
class Export:
    """An export that was made. `project`: None: of all projects, or of one that was deleted.

    `rows`: None while it is under way. `ended_at`: None unless it is complete.
    """

    id: int
    project: str | None
    key_id: int | None
    filters: Mapping[str, Any]
    level: str
    rows: int | None
    created_at: datetime
    ended_at: datetime | None


def format_export_id(export_id: int) -> str:
    """The id as clients see it: `export_12`."""
    return f"export_{export_id}"


def parse_export_id(text: str) -> int | None:
    """The number of an export's id; None if the text is no such id."""
    return number_of("export_", text)


class ExportStore(Store):
    """Keeps the list of exports."""

    async def start(
        self, principal: Principal, project_id: int | None, filters: Mapping[str, Any], level: LogLevel
    ) -> int:
        """Add an export to the list, and to the audit log; return its number."""
        statement = (
            insert(ExportRow)
            .values(project_id=project_id, key_id=principal.key_id, filters=filters, level=level.value)
            .returning(ExportRow.id)
        )
        async with transaction(self._engine) as connection:
            export_id: int = (await connection.execute(statement)).scalar_one()
            await record(
                connection,
                key_id=principal.key_id,
                action=EXPORTED,
                object_id=format_export_id(export_id),
                project_id=project_id,
                # An erasure leaves the audit log as it is: end users are named in the list of exports only.
                after={**{name: value for name, value in filters.items() if name != "end_user"}, "level": level.value},
            )
        return export_id

    async def end(self, export_id: int, rows: int, *, complete: bool) -> None:
        """Note how many requests an export has sent, and whether these are all."""
        ended_at = func.now() if complete else null()
        statement = update(ExportRow).where(ExportRow.id == export_id).values(rows=rows, ended_at=ended_at)
        await self._changes(statement)

    async def page(self, project_id: int | None, *, limit: int, after: int | None) -> list[Export]:
        """Return exports of a project, or all (None), newest first."""
        statement = (
            select(*ExportRow.__table__.columns, ProjectRow.name.label("project"))
            .outerjoin(ProjectRow, ProjectRow.id == ExportRow.project_id)
            .order_by(ExportRow.id.desc())
            .limit(limit)
        )
        if project_id is not None:
            statement = statement.where(ExportRow.project_id == project_id)
        if after is not None:
            statement = statement.where(ExportRow.id < after)
        return await self._all(
            statement,
            lambda row: Export(
                row.id, row.project, row.key_id, row.filters, row.level, row.rows, row.created_at, row.ended_at
            ),
        )
