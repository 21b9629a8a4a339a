"""The principals of work that was accepted earlier, with the options that their keys have now."""

from __future__ import annotations

import time
from dataclasses import replace

from api.keys.principal import Principal
from api.keys.store import ApiKeyStore
from shared.domain.owner import Owner

CACHE_SIZE = 10_000


class EarlierWork:
    """Looks up the principals of lines of batches and of replayed jobs. Keys are cached for a few seconds.

    The work was accepted while its key was valid, so it makes no difference whether the key still is.
    """

    def __init__(self, store: ApiKeyStore, cache_s: float) -> None:
        self._store = store
        self._cache_s = cache_s
        # By the id of the key: the expiry by the monotonic clock, and the principal without an end user.
        self._cache: dict[int, tuple[float, Principal]] = {}

    async def principal(self, owner: Owner) -> Principal:
        """Return the principal of the work of an owner."""
        now = time.monotonic()
        if (cached := self._cache.get(owner.key_id)) is not None and cached[0] > now:
            return replace(cached[1], end_user=owner.end_user)
        principal = await self._store.principal(owner)
        if len(self._cache) >= CACHE_SIZE:
            self._cache.clear()
        self._cache[owner.key_id] = (now + self._cache_s, principal)
        return principal
