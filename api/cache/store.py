"""SQL about the entries of the response cache. Jobs that end add entries, see `shared.postgres.job_statements`."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.postgres.store import Store
from shared.postgres.tables import SecretRow

NAME = "response_cache"


class CacheStore(Store):
    """The entries of the response cache in PostgreSQL."""

    async def secret(self, candidate: bytes) -> bytes:
        """The secret of this installation's keys: the first candidate of any process."""
        async with self._engine.connect() as connection:
            await connection.execute(upsert(SecretRow).values(name=NAME, value=candidate).on_conflict_do_nothing())
            found = await connection.execute(select(SecretRow.value).where(SecretRow.name == NAME))
            return found.scalar_one()
