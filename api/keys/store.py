"""Bearer keys: made once, shown once, stored as SHA-256."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.tables import ApiKeyRow


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is listed: its public prefix, never the key."""

    id: int
    name: str
    prefix: str
    created_at: datetime
    revoked_at: datetime | None


def generate_key() -> str:
    """`hr_`, a public prefix of 32 bits, `_`, and 256 random bits."""
    return f"hr_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """The stored form. A key has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def public_prefix(key: str) -> str:
    """What may be shown of a key: `hr_` and 8 characters, or the first 4 of one that somebody chose."""
    return "_".join(key.split("_")[:2]) if key.startswith("hr_") and key.count("_") >= 2 else key[:4]


class ApiKeyStore:
    """All SQL about keys."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, name: str, key: str) -> None:
        """Store a key; one that is there already stays as it is."""
        statement = insert(ApiKeyRow).values(name=name, prefix=public_prefix(key), sha256=digest(key))
        async with self._engine.connect() as connection:
            await connection.execute(statement.on_conflict_do_nothing(index_elements=[ApiKeyRow.sha256]))

    async def find(self, key: str) -> int | None:
        """The id of a key that is valid, else None."""
        statement = select(ApiKeyRow.id).where(ApiKeyRow.sha256 == digest(key), ApiKeyRow.revoked_at.is_(None))
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).scalar_one_or_none()

    async def all(self) -> Sequence[ApiKey]:
        statement = select(
            ApiKeyRow.id, ApiKeyRow.name, ApiKeyRow.prefix, ApiKeyRow.created_at, ApiKeyRow.revoked_at
        ).order_by(ApiKeyRow.id)
        async with self._engine.connect() as connection:
            return [ApiKey(*row) for row in await connection.execute(statement)]

    async def revoke(self, prefix: str) -> int:
        """Revoke the keys with a public prefix. Returns how many were valid until now."""
        statement = (
            update(ApiKeyRow)
            .where(ApiKeyRow.prefix == prefix, ApiKeyRow.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )
        async with self._engine.connect() as connection:
            return int((await connection.execute(statement)).rowcount)
