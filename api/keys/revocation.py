"""Interrupts the requests of keys that were revoked, have expired, or have lost a scope."""

from __future__ import annotations

import logging
from collections.abc import Collection

from api.keys.auth import Authenticator
from api.keys.open_requests import OpenRequests
from api.keys.store import ApiKeyStore
from shared.runtime.outages import is_database_outage
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.2


class RevocationCheck:
    """Checks the keys that this process has cached or that have open requests: streams, waits and uploads."""

    def __init__(
        self,
        store: ApiKeyStore,
        authenticators: Collection[Authenticator],
        requests: OpenRequests,
        *,
        interval_s: float,
    ) -> None:
        self._store = store
        self._authenticators = authenticators
        self._requests = requests
        self._interval_s = max(MIN_INTERVAL_S, interval_s)

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(
            self.check, "revoked key check", interval_s=self._interval_s, tolerates=is_database_outage
        )

    async def check(self) -> int:
        """Interrupt the requests of keys that are not valid any more, and those that have a scope which their key lost.

        Returns the number of keys that are not valid any more.
        """
        known = self._requests.key_ids().union(*(cache.cached_key_ids() for cache in self._authenticators))
        if not known:
            return 0
        scopes = await self._store.valid_scopes(known)
        for key_id in known:
            if key_id not in scopes:
                self._forget(key_id)
                interrupted = self._requests.interrupt(key_id)
                logger.info("key=%d was revoked or has expired; %d requests closed", key_id, interrupted)
            elif interrupted := self._requests.interrupt(key_id, beyond=scopes[key_id]):
                self._forget(key_id)
                logger.info("key=%d has lost a scope; %d requests closed", key_id, interrupted)
        return len(known - scopes.keys())

    def _forget(self, key_id: int) -> None:
        for authenticator in self._authenticators:
            authenticator.forget(key_id)
