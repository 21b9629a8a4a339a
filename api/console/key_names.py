"""The names of keys and of their projects."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.store import format_id
from shared.postgres.store import Store
from shared.postgres.tables import ApiKeyRow, ProjectRow

_CACHE_SIZE = 10_000
# A key that was renamed is shown by its old name for at most this long.
_CACHE_S = 60.0


@dataclass(frozen=True, slots=True)
class KeyNames:
    """What a person calls a key and its project."""

    key: str
    project: str


class KeyNamesStore(Store):
    """Reads names of keys. Each is read once a minute at most."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._names: dict[int, KeyNames] = {}
        self._stale_at = 0.0

    async def names(self, key_ids: Iterable[int]) -> Mapping[int, KeyNames]:
        """The names of keys and of their projects, by the number of the key."""
        if len(self._names) >= _CACHE_SIZE or time.monotonic() >= self._stale_at:
            self._names.clear()
            self._stale_at = time.monotonic() + _CACHE_S
        found = {key_id: self._names.get(key_id) for key_id in key_ids}
        if missing := [key_id for key_id, names in found.items() if names is None]:
            statement = (
                select(ApiKeyRow.id, ApiKeyRow.name, ProjectRow.name.label("project"))
                .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
                .where(ApiKeyRow.id.in_(missing))
            )
            async with self._engine.connect() as connection:
                rows = (await connection.execute(statement)).all()
            read = {row.id: KeyNames(row.name, row.project) for row in rows}
            self._names |= read
            found |= read
        return {key_id: names or KeyNames(format_id(key_id), "") for key_id, names in found.items()}
