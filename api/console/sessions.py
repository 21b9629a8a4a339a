"""Sessions of the console. A session is of one API key, has its rights, and ends with it."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.session_store import SESSION_S, KeyNames, SessionStore, new_token
from api.keys.auth import Authenticator
from api.keys.principal import Principal
from shared.domain.errors import Unauthorized


class Sessions:
    """Starts, finds and ends sessions. What was found is cached like keys are, for `HEADRACE_KEY_CACHE_S`."""

    def __init__(self, engine: AsyncEngine, cache_s: float, keys: Authenticator) -> None:
        self._store = SessionStore(engine)
        self._keys = keys
        self.authenticator = Authenticator(self._store, cache_s)
        self._names: dict[int, KeyNames] = {}

    async def sign_in(self, key: str) -> str:
        """Start a session of an API key; returns its token.

        Raises:
            Unauthorized: the key is not valid.
        """
        principal = await self._keys.principal(key)
        token = new_token()
        await self._store.create(principal.key_id, token, is_link=False, lifetime_s=SESSION_S)
        return token

    async def sign_in_by_link(self, link_token: str) -> str:
        """Start the session of a one-time link; returns its token.

        Raises:
            Unauthorized: the link was used, has expired, or never existed.
        """
        token = new_token()
        if not await self._store.redeem(link_token, token, lifetime_s=SESSION_S):
            raise Unauthorized("This sign-in link was used or has expired.")
        return token

    async def principal(self, token: str) -> Principal:
        """Return the principal of a session.

        Raises:
            Unauthorized: the session has ended, or never existed.
            Unavailable: this version cannot read the options of its key.
        """
        return await self.authenticator.principal(token)

    async def names(self, principal: Principal) -> KeyNames:
        """The names of the principal's key and project, which never change."""
        if (names := self._names.get(principal.key_id)) is None:
            if len(self._names) >= 1000:
                self._names.clear()
            names = self._names[principal.key_id] = await self._store.names(principal.key_id)
        return names

    async def sign_out(self, token: str) -> None:
        """End a session, at once in this process; in others it is cached for at most `HEADRACE_KEY_CACHE_S`."""
        await self._store.end(token)
        self.authenticator.forget_credential(token)

    async def create_link(self, principal: Principal) -> str:
        """Create a one-time link of the principal's key; returns its token."""
        return await self._store.create_link(principal.key_id)
