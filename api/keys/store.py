"""SQL for API keys and projects. A key is shown once, when it is created; only its SHA-256 is stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Row,
    Text,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.keys.principal import Principal, Scope
from shared.domain.errors import Conflict
from shared.postgres.engine import transaction
from shared.postgres.group_commit import GroupCommit
from shared.postgres.store import Store, seconds
from shared.postgres.tables import ApiKeyRow, ProjectRow

# `last_used_at` lags behind a key's last use by at most this much.
LAST_USED_RESOLUTION_S = 60.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as listed, without the key itself."""

    id: int
    name: str
    prefix: str
    project: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def state(self, now: datetime) -> str:
        """`valid`, `expires …`, `expired …` or `revoked …`, with the time in UTC."""
        if self.revoked_at is not None:
            return f"revoked {self.revoked_at:%Y-%m-%d %H:%M}"
        if self.expires_at is None:
            return "valid"
        return f"{'expired' if self.expires_at <= now else 'expires'} {self.expires_at:%Y-%m-%d %H:%M}"


@dataclass(frozen=True, slots=True)
class ValidKey:
    """The principal of a valid key, and the seconds until the key expires (None: it does not expire)."""

    principal: Principal
    expires_in_s: float | None


def generate_key() -> str:
    """Return `hr_`, a public prefix of 32 bits, `_`, and 256 random bits."""
    return f"hr_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """The stored form of a key: a plain hash, which is enough for 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def public_prefix(key: str) -> str:
    """The part of a key that may be shown: `hr_` and 8 characters, or the first 4 of a key that an operator chose."""
    return "_".join(key.split("_")[:2]) if key.startswith("hr_") and key.count("_") >= 2 else key[:4]


def _valid() -> ColumnElement[bool]:
    """Condition: the key is neither revoked nor expired."""
    return and_(ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()))


class ProjectExists(Conflict):
    """A project with this name exists."""


class ApiKeyStore(Store):
    """API keys and projects in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._lookups = GroupCommit(self._find)

    async def create(
        self,
        name: str,
        key: str,
        *,
        project: str | None = None,
        new_project: bool = False,
        scopes: Iterable[Scope] = (Scope.INFERENCE,),
        expires_in_s: float | None = None,
    ) -> None:
        """Store a key of a project (default: the project named like the key), which is created if it is missing.

        A key that is already stored does not change.

        Raises:
            ProjectExists: with `new_project`, a project with this name exists.
        """
        async with transaction(self._engine) as connection:
            known = select(exists().where(ApiKeyRow.sha256 == digest(key)))
            if (await connection.execute(known)).scalar_one():
                return
            project_id = await _project_id(connection, project or name, must_be_new=new_project)
            statement = _insert(name, key, project_id, sorted(scope.value for scope in scopes), expires_in_s)
            await connection.execute(statement.on_conflict_do_nothing(index_elements=[ApiKeyRow.sha256]))

    async def rotate(self, prefix: str, key: str, *, overlap_s: float, expires_in_s: float | None = None) -> int:
        """Store a successor of the valid key with this public prefix; the old key expires after the overlap.

        The successor has the same name, project and scopes. Returns the number of valid keys that have the prefix; if
        it is not 1, nothing changes.
        """
        async with transaction(self._engine) as connection:
            old = select(ApiKeyRow.id, ApiKeyRow.name, ApiKeyRow.project_id, ApiKeyRow.scopes).where(
                ApiKeyRow.prefix == prefix, _valid()
            )
            found = (await connection.execute(old.with_for_update(key_share=True))).all()
            if len(found) != 1:
                return len(found)
            row = found[0]
            await connection.execute(_insert(row.name, key, row.project_id, row.scopes, expires_in_s))
            ends = func.least(func.now() + seconds(overlap_s), ApiKeyRow.expires_at)
            await connection.execute(update(ApiKeyRow).where(ApiKeyRow.id == row.id).values(expires_at=ends))
        return 1

    async def find(self, key: str) -> ValidKey | None:
        """Return the principal of a key that is neither revoked nor expired, else None. Records the key's use.

        The use is written at most once a minute per key, without waiting for another process that writes it. Concurrent
        lookups share a query, so that guessed keys do not cost a round trip each.
        """
        return await self._lookups(digest(key))

    async def _find(self, digests: Sequence[str]) -> list[ValidKey | None]:
        valid = (ApiKeyRow.sha256 == func.any(bindparam("digests", list(digests), type_=ARRAY(Text))), _valid())
        stale = (
            select(ApiKeyRow.id)
            .where(
                *valid,
                or_(
                    ApiKeyRow.last_used_at.is_(None),
                    ApiKeyRow.last_used_at < func.now() - seconds(LAST_USED_RESOLUTION_S),
                ),
            )
            .with_for_update(skip_locked=True, key_share=True)
            .scalar_subquery()
        )
        used = update(ApiKeyRow).where(ApiKeyRow.id.in_(stale)).values(last_used_at=func.now()).returning(ApiKeyRow.id)
        statement = (
            select(
                ApiKeyRow.sha256,
                ApiKeyRow.id,
                ApiKeyRow.project_id,
                ApiKeyRow.scopes,
                func.extract("epoch", ApiKeyRow.expires_at - func.now()).label("expires_in_s"),
            )
            .where(*valid)
            .add_cte(used.cte("used"))
        )
        async with self._engine.connect() as connection:
            found = {row.sha256: _valid_key(row) for row in await connection.execute(statement)}
        return [found.get(sha256) for sha256 in digests]

    async def valid_ids(self, key_ids: Iterable[int]) -> set[int]:
        """Return the ids of those keys that are neither revoked nor expired."""
        ids = bindparam("ids", list(key_ids), type_=ARRAY(BigInteger))
        async with self._engine.connect() as connection:
            found = await connection.execute(select(ApiKeyRow.id).where(ApiKeyRow.id == func.any(ids), _valid()))
            return set(found.scalars())

    async def all(self) -> Sequence[ApiKey]:
        """Return all keys, oldest first."""
        statement = (
            select(
                ApiKeyRow.id,
                ApiKeyRow.name,
                ApiKeyRow.prefix,
                ProjectRow.name.label("project"),
                ApiKeyRow.scopes,
                ApiKeyRow.created_at,
                ApiKeyRow.expires_at,
                ApiKeyRow.revoked_at,
                ApiKeyRow.last_used_at,
            )
            .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
            .order_by(ApiKeyRow.id)
        )
        return await self._all(statement, _api_key)

    async def revoke(self, prefix: str) -> int:
        """Revoke the valid keys with this public prefix. Returns their number."""
        statement = update(ApiKeyRow).where(ApiKeyRow.prefix == prefix, _valid()).values(revoked_at=func.now())
        async with self._engine.connect() as connection:
            return int((await connection.execute(statement)).rowcount)


def _insert(name: str, key: str, project_id: int, scopes: list[str], expires_in_s: float | None) -> Insert:
    return insert(ApiKeyRow).values(
        name=name,
        prefix=public_prefix(key),
        sha256=digest(key),
        project_id=project_id,
        scopes=scopes,
        expires_at=None if expires_in_s is None else func.now() + seconds(expires_in_s),
    )


def _valid_key(row: Any) -> ValidKey:
    scopes = frozenset(Scope(scope) for scope in row.scopes)
    left = None if row.expires_in_s is None else float(row.expires_in_s)
    return ValidKey(Principal(row.project_id, row.id, scopes), left)


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        project=row.project,
        scopes=tuple(Scope(scope) for scope in row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


async def _project_id(connection: AsyncConnection, name: str, *, must_be_new: bool) -> int:
    """Return the id of the project with this name, which is created if it is missing."""
    created = insert(ProjectRow).values(name=name).on_conflict_do_nothing(index_elements=[ProjectRow.name])
    if not (await connection.execute(created)).rowcount and must_be_new:
        raise ProjectExists
    found = await connection.execute(select(ProjectRow.id).where(ProjectRow.name == name))
    return int(found.scalar_one())
