"""Who is asking: bearer keys."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from api.http.dependencies import get_resource
from api.keys.store import ApiKeyStore, digest
from shared.domain.errors import Unauthorized

CACHE_SIZE = 10_000
bearer = HTTPBearer(auto_error=False, description="An API key: `python -m api.keys create NAME`.")
api_key_header = APIKeyHeader(
    name="x-api-key", scheme_name="AnthropicKey", auto_error=False, description="The same key, as Anthropic's clients."
)


class Authenticator:
    """Looks keys up, and remembers valid ones for a few seconds: a revoked key works that much longer."""

    def __init__(self, store: ApiKeyStore, cache_s: float) -> None:
        self._store = store
        self._cache_s = cache_s
        self._known: dict[str, tuple[float, int]] = {}

    async def key_id(self, key: str) -> int:
        """The id of a valid key.

        Raises:
            Unauthorized: there is no such key, or it was revoked.
        """
        sha256, now = digest(key), time.monotonic()
        if (known := self._known.get(sha256)) is not None and known[0] > now:
            return known[1]
        found = await self._store.find(key)
        if found is None:
            self._known.pop(sha256, None)
            raise Unauthorized("The API key is not valid.")
        if len(self._known) >= CACHE_SIZE:
            self._known.clear()
        self._known[sha256] = (now + self._cache_s, found)
        return found


async def current_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> int:
    """The asking key's id."""
    return await _key_id(request, credentials.credentials if credentials is not None else None)


async def anthropic_key(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    api_key: Annotated[str | None, Depends(api_key_header)],
) -> int:
    """The asking key's id, where a client of Anthropic's may ask too."""
    return await _key_id(request, api_key or (credentials.credentials if credentials is not None else None))


async def _key_id(request: Request, key: str | None) -> int:
    if key is None:
        raise Unauthorized
    authenticator = get_resource(request, Authenticator)
    return await authenticator.key_id(key)


CurrentKey = Annotated[int, Depends(current_key)]
AnthropicKey = Annotated[int, Depends(anthropic_key)]
