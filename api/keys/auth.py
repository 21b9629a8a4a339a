"""Authentication: bearer keys, and the principal that a request acts for."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Protocol

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from api.keys.open_requests import OpenRequest
from api.keys.principal import Principal, Scope
from api.keys.store import digest
from api.keys.valid_keys import ValidKey
from shared.domain.errors import Unauthorized, UnreadableRow

CACHE_SIZE = 10_000
# A longer key is rejected without a lookup.
MAX_KEY = 1024
_INVALID = "The API key is not valid."


class _Bearer(HTTPBearer):
    """Describes the bearer key in the OpenAPI document. The middleware reads it."""

    async def __call__(self, request: Request) -> None:
        return None


class _ApiKeyHeader(APIKeyHeader):
    """The same for `x-api-key`."""

    async def __call__(self, request: Request) -> None:
        return None


bearer = _Bearer(
    auto_error=False, scheme_name="HTTPBearer", description="An API key: `python -m api.keys create NAME`."
)
api_key_header = _ApiKeyHeader(
    name="x-api-key",
    scheme_name="AnthropicKey",
    auto_error=False,
    description="The same key, as Anthropic's clients send it.",
)


class CredentialStore(Protocol):
    """Finds what a credential is valid for: an API key, or the token of a session of the console."""

    async def find(self, credential: str, /) -> ValidKey | None:
        """Return the principal of a valid credential, else None.

        Raises:
            UnreadableRow: this version cannot read the options of its key.
        """


class Authenticator:
    """Looks up credentials. The results are cached for a few seconds, so a revoked key remains usable for that long."""

    def __init__(self, store: CredentialStore, cache_s: float) -> None:
        self._store = store
        self._cache_s = cache_s
        # By digest; None: there is no such key. The error: this version cannot read it.
        self._cache: dict[str, tuple[float, Principal | UnreadableRow | None]] = {}
        self._lookups: dict[str, asyncio.Task[Principal | None]] = {}

    async def principal(self, key: str) -> Principal:
        """Return the principal of a valid key.

        Raises:
            Unauthorized: the key is empty, does not exist, was revoked, or has expired.
            Unavailable: this version cannot read the key's options.
        """
        if not key:
            raise Unauthorized
        if len(key) > MAX_KEY:
            raise Unauthorized(_INVALID)
        sha256, now = digest(key), time.monotonic()
        if (cached := self._cache.get(sha256)) is not None and cached[0] > now:
            if cached[1] is None:
                raise Unauthorized(_INVALID)
            if isinstance(cached[1], UnreadableRow):
                raise cached[1].with_traceback(None)
            return cached[1]
        if (lookup := self._lookups.get(sha256)) is None:
            lookup = self._lookups[sha256] = asyncio.create_task(self._look_up(key, sha256, now), name="key-lookup")
            lookup.add_done_callback(_retrieve_error)
        principal = await asyncio.shield(lookup)  # shared: one request's cancellation must not end the others'
        if principal is None:
            raise Unauthorized(_INVALID)
        return principal

    def cached_key_ids(self) -> set[int]:
        """The ids of the keys that are cached as valid."""
        return {principal.key_id for _, principal in self._cache.values() if isinstance(principal, Principal)}

    def forget(self, key_id: int) -> None:
        """Remove a key from the cache: it is not valid any more."""
        self._cache = {
            sha256: entry
            for sha256, entry in self._cache.items()
            if not isinstance(entry[1], Principal) or entry[1].key_id != key_id
        }

    def forget_credential(self, sha256: str) -> None:
        """Remove a credential, by its hash, from the cache: it was withdrawn, but others of its key may be valid."""
        self._cache.pop(sha256, None)

    async def _look_up(self, key: str, sha256: str, now: float) -> Principal | None:
        """Look up a key for all requests that need it now: a burst after a pause costs one query, not one each."""
        if len(self._cache) >= CACHE_SIZE:
            self._cache.clear()
        try:
            found = await self._store.find(key)
        except UnreadableRow as error:
            self._cache[sha256] = (now + self._cache_s, error)
            raise
        finally:
            del self._lookups[sha256]
        if found is None:
            self._cache[sha256] = (now + self._cache_s, None)
            return None
        cache_s = self._cache_s if found.expires_in_s is None else min(self._cache_s, found.expires_in_s)
        self._cache[sha256] = (now + cache_s, found.principal)
        return found.principal


def _retrieve_error(lookup: asyncio.Task[Principal | None]) -> None:
    """Mark a lookup's error as handled, though every request that waited for it may have been cancelled."""
    if not lookup.cancelled():
        lookup.exception()


async def any_principal(request: Request, _: Annotated[None, Depends(bearer)]) -> Principal:
    """Return the principal of a request, which the middleware has authenticated, whatever the scopes of its key.

    Raises:
        Unauthorized: the request was not authenticated.
    """
    open_request: OpenRequest | None = getattr(request.state, "open_request", None)
    if open_request is None:
        raise Unauthorized
    return open_request.principal


async def current_principal(request: Request, _: Annotated[None, Depends(bearer)]) -> Principal:
    """Return the principal of a request, if its key has the `inference` scope.

    Raises:
        Unauthorized: the request was not authenticated.
        Forbidden: the key does not have the scope.
    """
    principal = await any_principal(request, _)
    principal.require(Scope.INFERENCE)
    return principal


async def anthropic_principal(
    principal: Annotated[Principal, Depends(current_principal)], _: Annotated[None, Depends(api_key_header)]
) -> Principal:
    """The same, documented to accept the key as `x-api-key`."""
    return principal


async def current_request(request: Request) -> OpenRequest:
    """Return the request as the middleware has authenticated it. Only for routes that also require a principal."""
    open_request: OpenRequest = request.state.open_request
    return open_request


AnyPrincipal = Annotated[Principal, Depends(any_principal)]
CurrentPrincipal = Annotated[Principal, Depends(current_principal)]
AnthropicPrincipal = Annotated[Principal, Depends(anthropic_principal)]
CurrentRequest = Annotated[OpenRequest, Depends(current_request)]
