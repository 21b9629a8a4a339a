"""SQL for sessions of the console, and for the one-time links that start them."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from sqlalchemy import ARRAY, Text, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from api.keys.principal import Scope
from api.keys.store import digest
from api.keys.valid_keys import VALID_KEY_COLUMNS, ValidKey, key_is_valid, read_valid_key
from shared.domain.errors import UnreadableRow
from shared.postgres.engine import transaction
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, seconds
from shared.postgres.tables import ApiKeyRow, ConsoleSessionRow, ProjectRow

SESSION_S = 12 * 3600.0
LINK_S = 10 * 60.0


_VALID = Prepared(
    select(ConsoleSessionRow.sha256).where(
        ConsoleSessionRow.sha256 == func.any(bindparam("sessions", type_=ARRAY(Text))),
        ConsoleSessionRow.is_link.is_(False),
        ConsoleSessionRow.expires_at > func.now(),
    )
)


def link_path(token: str) -> str:
    """The path of a one-time link, below the address of the API."""
    return f"/console/sign-in?token={token}"


def new_token() -> str:
    """The secret of a session or link: 256 random bits."""
    return secrets.token_urlsafe(32)


class SessionStore(Store):
    """Sessions and one-time links in PostgreSQL, which the console needs anyway: it must work while Redis does not."""

    async def create(self, key_id: int, token: str, *, is_link: bool, lifetime_s: float) -> None:
        """Store a session or link of a key. Removes those that have expired, so nothing else has to."""
        async with transaction(self._engine) as connection:
            await connection.execute(delete(ConsoleSessionRow).where(ConsoleSessionRow.expires_at <= func.now()))
            await connection.execute(
                insert(ConsoleSessionRow).values(
                    sha256=digest(token),
                    api_key_id=key_id,
                    is_link=is_link,
                    expires_at=func.now() + seconds(lifetime_s),
                )
            )

    async def create_link(self, key_id: int) -> str:
        """Create a one-time link of a key; returns its token, which is valid for `LINK_S` seconds."""
        token = new_token()
        await self.create(key_id, token, is_link=True, lifetime_s=LINK_S)
        return token

    async def find(self, token: str) -> ValidKey | None:
        """Return the principal of a session whose key is valid, else None.

        Raises:
            UnreadableRow: this version cannot read the key's options.
        """
        left = func.extract("epoch", ConsoleSessionRow.expires_at - func.now()).label("session_left_s")
        statement = (
            select(left, *VALID_KEY_COLUMNS)
            .select_from(ConsoleSessionRow)
            .join(ApiKeyRow, ApiKeyRow.id == ConsoleSessionRow.api_key_id)
            .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
            .where(
                ConsoleSessionRow.sha256 == digest(token),
                ConsoleSessionRow.is_link.is_(False),
                ConsoleSessionRow.expires_at > func.now(),
                key_is_valid(),
            )
        )
        row = await self._first(statement)
        if row is None:
            return None
        valid = read_valid_key(row)
        if isinstance(valid, UnreadableRow):
            raise valid
        left_s = float(row.session_left_s)
        return ValidKey(valid.principal, left_s if valid.expires_in_s is None else min(left_s, valid.expires_in_s))

    async def redeem(self, link_token: str, session_token: str, *, lifetime_s: float) -> bool:
        """Turn a link into a session, once. False: it does not exist, was used, has expired, or its key has."""
        usable = (
            ConsoleSessionRow.sha256 == digest(link_token),
            ConsoleSessionRow.is_link.is_(True),
            ConsoleSessionRow.expires_at > func.now(),
            select(ApiKeyRow.id).where(ApiKeyRow.id == ConsoleSessionRow.api_key_id, key_is_valid()).exists(),
        )
        statement = (
            update(ConsoleSessionRow)
            .where(*usable)
            .values(sha256=digest(session_token), is_link=False, expires_at=func.now() + seconds(lifetime_s))
        )
        return await self._changes(statement)

    async def valid(self, sessions: Collection[str]) -> set[str]:
        """Those of these sessions, by the hashes of their tokens, that have not ended."""
        return {row.sha256 for row in await _VALID.run(self._engine, {"sessions": list(sessions)})}

    async def end(self, token: str) -> None:
        """Remove a session."""
        await self._changes(delete(ConsoleSessionRow).where(ConsoleSessionRow.sha256 == digest(token)))

    async def key_named(self, name: str) -> int | None:
        """The id of the newest valid key with this name and both scopes, None if there is none."""
        both = bindparam("scopes", [scope.value for scope in Scope], type_=ARRAY(Text))
        statement = (
            select(ApiKeyRow.id)
            .where(
                key_is_valid(),
                ApiKeyRow.name == name,
                ApiKeyRow.scopes.op("@>")(both),
            )
            .order_by(ApiKeyRow.id.desc())
            .limit(1)
        )
        row = await self._first(statement)
        return None if row is None else int(row.id)
