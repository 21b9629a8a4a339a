"""Sessions of the console. A session is of one API key, has its rights, and ends with it."""

from __future__ import annotations

import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.key_names import KeyNames, KeyNamesStore
from api.console.session_store import SESSION_S, SessionStore, new_token
from api.keys.auth import Authenticator
from api.keys.open_requests import OpenRequest, OpenRequests
from api.keys.principal import Principal
from api.keys.revocation import MIN_INTERVAL_S
from api.keys.store import digest
from shared.domain.errors import Unauthorized
from shared.runtime.outages import is_database_outage
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)


class Sessions:
    """Starts, finds and ends sessions. What was found is cached like keys are, for `HEADRACE_KEY_CACHE_S`.

    The open requests of a session end with it: at once when it signs out in this process, and otherwise, when it
    signed out in another one or has expired, at the next `check`. Those of a revoked key are of `RevocationCheck`.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        cache_s: float,
        keys: Authenticator,
        requests: OpenRequests,
        names: KeyNamesStore,
    ) -> None:
        self._store = SessionStore(engine)
        self._keys = keys
        self._requests = requests
        self._check_s = max(MIN_INTERVAL_S, cache_s / 2)
        self.authenticator = Authenticator(self._store, cache_s)
        self._names = names

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
        """The names of the principal's key and project."""
        return (await self._names.names([principal.key_id]))[principal.key_id]

    async def sign_out(self, token: str, request: OpenRequest) -> None:
        """End a session and its open requests, except the `request` that does so, which is answered.

        That is at once in this process; in others the session is cached for at most `HEADRACE_KEY_CACHE_S`.
        """
        request.session = None
        await self._store.end(token)
        self._end(digest(token))

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(
            self.check, "ended session check", interval_s=self._check_s, tolerates=is_database_outage
        )

    async def check(self) -> int:
        """Interrupt the requests of sessions that have ended. Returns the number of those sessions."""
        known = self._requests.sessions()
        ended = known - await self._store.valid(known) if known else known
        for session in ended:
            logger.info("a session of the console has ended; %d requests closed", self._end(session))
        return len(ended)

    def _end(self, session: str) -> int:
        self.authenticator.forget_credential(session)
        return self._requests.interrupt_session(session)

    async def create_link(self, principal: Principal) -> str:
        """Create a one-time link of the principal's key; returns its token."""
        return await self._store.create_link(principal.key_id)
