"""What the pages of keys and projects need beside `api.admin.keys`."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.store import ApiKey, ApiKeyStore, parse_id
from shared.domain.errors import NotFound
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow


class KeyPagesStore(Store):
    """Keys by id, and the names of projects."""

    def __init__(self, engine: AsyncEngine, keys: ApiKeyStore) -> None:
        super().__init__(engine)
        self._keys = keys

    async def key(self, key_id: str) -> ApiKey:
        """A key, valid or not.

        Raises:
            NotFound: there is no such key.
        """
        number = parse_id(key_id)
        found = None if number is None else await self._keys.get(number)
        if found is None:
            raise NotFound(f"There is no key {key_id[:64]!r}.")
        return found

    async def project_names(self, limit: int) -> list[str]:
        """The names of projects, for suggestions."""
        return await self._all(
            select(ProjectRow.name).order_by(ProjectRow.name).limit(limit), lambda row: str(row.name)
        )
