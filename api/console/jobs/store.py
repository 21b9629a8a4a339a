"""SQL of the pages about jobs: the names of keys and their projects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.session_store import KeyNames
from api.keys.store import format_id
from shared.postgres.store import Store
from shared.postgres.tables import ApiKeyRow, ProjectRow

_CACHE_SIZE = 10_000


class KeyNamesStore(Store):
    """Reads names of keys. They never change, so that each is read once."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._names: dict[int, KeyNames] = {}

    async def names(self, key_ids: Iterable[int]) -> Mapping[int, KeyNames]:
        """The names of keys and of their projects, by the number of the key."""
        wanted = set(key_ids)
        if missing := wanted - self._names.keys():
            statement = (
                select(ApiKeyRow.id, ApiKeyRow.name, ProjectRow.name.label("project"))
                .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
                .where(ApiKeyRow.id.in_(missing))
            )
            async with self._engine.connect() as connection:
                rows = (await connection.execute(statement)).all()
            if len(self._names) >= _CACHE_SIZE:
                self._names.clear()
            self._names |= {row.id: KeyNames(row.name, row.project) for row in rows}
        unknown = {key_id: KeyNames(format_id(key_id), "") for key_id in wanted - self._names.keys()}
        return {key_id: self._names[key_id] for key_id in wanted & self._names.keys()} | unknown
