"""Authentication: bearer keys, and the principal that a request acts for."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from api.http.dependencies import get_resource
from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore, digest
from shared.domain.errors import Unauthorized

CACHE_SIZE = 10_000
bearer = HTTPBearer(auto_error=False, description="An API key: `python -m api.keys create NAME`.")
api_key_header = APIKeyHeader(
    name="x-api-key",
    scheme_name="AnthropicKey",
    auto_error=False,
    description="The same key, as Anthropic's clients send it.",
)


class Authenticator:
    """Looks up keys. Valid keys are cached for a few seconds, so a revoked key remains usable for that long."""

    def __init__(self, store: ApiKeyStore, cache_s: float) -> None:
        self._store = store
        self._cache_s = cache_s
        self._cache: dict[str, tuple[float, Principal]] = {}
        self._lookups: dict[str, asyncio.Task[Principal | None]] = {}

    async def principal(self, key: str) -> Principal:
        """Return the principal of a valid key.

        Raises:
            Unauthorized: the key does not exist, was revoked, or has expired.
        """
        sha256, now = digest(key), time.monotonic()
        if (cached := self._cache.get(sha256)) is not None and cached[0] > now:
            return cached[1]
        if (lookup := self._lookups.get(sha256)) is None:
            lookup = self._lookups[sha256] = asyncio.create_task(self._look_up(key, sha256, now), name="key-lookup")
            lookup.add_done_callback(_retrieve_error)
        principal = await asyncio.shield(lookup)  # shared: one request's cancellation must not end the others'
        if principal is None:
            raise Unauthorized("The API key is not valid.")
        return principal

    async def _look_up(self, key: str, sha256: str, now: float) -> Principal | None:
        """Look up a key for all requests that need it now: a burst after a pause costs one query, not one each."""
        try:
            found = await self._store.find(key)
        finally:
            del self._lookups[sha256]
        if found is None:
            self._cache.pop(sha256, None)
            return None
        if len(self._cache) >= CACHE_SIZE:
            self._cache.clear()
        cache_s = self._cache_s if found.expires_in_s is None else min(self._cache_s, found.expires_in_s)
        self._cache[sha256] = (now + cache_s, found.principal)
        return found.principal


def _retrieve_error(lookup: asyncio.Task[Principal | None]) -> None:
    """Mark a lookup's error as handled, though every request that waited for it may have been cancelled."""
    if not lookup.cancelled():
        lookup.exception()


async def current_principal(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    api_key: Annotated[str | None, Depends(api_key_header)],
) -> Principal:
    """Return the principal of a request whose key, the bearer key or `x-api-key`, has the `inference` scope."""
    return await _principal(request, credentials.credentials if credentials is not None else api_key)


async def anthropic_principal(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    api_key: Annotated[str | None, Depends(api_key_header)],
) -> Principal:
    """The same for routes of Anthropic's API, on which `x-api-key` takes precedence."""
    return await _principal(request, api_key or (credentials.credentials if credentials is not None else None))


async def _principal(request: Request, key: str | None) -> Principal:
    if key is None:
        raise Unauthorized
    authenticator = get_resource(request, Authenticator)
    principal = await authenticator.principal(key)
    principal.require(Scope.INFERENCE)
    return principal


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]
AnthropicPrincipal = Annotated[Principal, Depends(anthropic_principal)]
