"""What the pages of keys and projects need beside `api.admin.keys`."""

from __future__ import annotations

import logging

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal
from api.keys.store import ApiKey, ApiKeyStore, parse_id
from shared.domain.errors import NotFound
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow

logger = logging.getLogger(__name__)


class KeyPagesStore(Store):
    """Keys by id, and projects by name."""

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

    async def tier(self, project: str) -> str | None:
        """The tier of a project.

        Raises:
            NotFound: there is no such project.
        """
        row = await self._first(select(ProjectRow.tier).where(ProjectRow.name == project))
        if row is None:
            raise NotFound(f"There is no project {project!r}.")
        tier: str | None = row.tier
        return tier

    async def set_tier(self, principal: Principal, project: str, tier: str | None) -> None:
        """Change the tier of a project.

        Raises:
            NotFound: there is no such project.
        """
        if not await self._keys.set_tier(project, tier):
            raise NotFound(f"There is no project {project!r}.")
        logger.warning("project=%s tier=%s changed by key_%d", project, tier, principal.key_id)
