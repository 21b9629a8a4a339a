"""The project of judges, which owns their jobs: an ordinary budget of it bounds what judges may spend."""

from __future__ import annotations

import asyncio

from sqlalchemy import func, select

from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore, generate_key
from shared.domain.owner import Owner
from shared.postgres.engine import transaction
from shared.postgres.store import Store
from shared.postgres.tables import ApiKeyRow, ProjectRow

# The name of the project, and of its key, which nobody has.
PROJECT = "headrace-judge"
# Identifies the advisory lock of the process that creates them.
_LOCK = 0x6872_0004


class JudgeIdentity(Store):
    """Finds the project and key of judges, and creates them when they are first needed."""

    _owner: Owner | None = None

    async def principal(self, keys: ApiKeyStore) -> Principal:
        """The principal of judges."""
        if self._owner is None:
            self._owner = await self._find() or await self._create(keys)
        return Principal(self._owner.project_id, self._owner.key_id, frozenset({Scope.INFERENCE}))

    async def project_id(self) -> int | None:
        """The project of judges, if it exists."""
        row = await self._first(select(ProjectRow.id).where(ProjectRow.name == PROJECT))
        return None if row is None else int(row.id)

    async def _find(self) -> Owner | None:
        statement = (
            select(ApiKeyRow.project_id, ApiKeyRow.id)
            .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
            .where(ProjectRow.name == PROJECT, ApiKeyRow.name == PROJECT)
            .order_by(ApiKeyRow.id)
            .limit(1)
        )
        return await self._one(statement, lambda row: Owner(row.project_id, row.id))

    async def _create(self, keys: ApiKeyStore) -> Owner:
        async with transaction(self._engine) as connection:
            await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            if (found := await self._find()) is not None:
                return found
            # The text of the key is thrown away: no request can have it.
            await asyncio.shield(keys.create(PROJECT, generate_key(), project=PROJECT, generated=True))
        created = await self._find()
        assert created is not None
        return created
