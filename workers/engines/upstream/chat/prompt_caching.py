"""The parameters of a request that concern the prompt cache of an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.config.models.presets import PRESETS, CacheKey
from shared.domain.request import GenerateRequest

# The names of cache keys, which a server may refuse: older versions do not know them.
CACHE_KEYS: Mapping[str, Mapping[str, Any]] = {
    server.cache_key.name: {} for server in PRESETS.values() if server.cache_key is not None
}


@dataclass(frozen=True, slots=True)
class PromptCaching:
    """The values for a server: the client's key, if the server has a parameter for it, and the project's salt."""

    key: CacheKey | None = None
    salted: bool = False

    def members(self, request: GenerateRequest) -> dict[str, Any]:
        """The members of the body."""
        members: dict[str, Any] = {}
        if self.key is not None and request.prompt_cache_key:
            members[self.key.name] = _own(request.prompt_cache_key, request.cache_salt, self.key.length)
        if self.salted and request.cache_salt is not None:
            members["cache_salt"] = request.cache_salt
        return members


NO_CACHING = PromptCaching()


def _own(key: str, salt: str | None, length: int) -> str:
    """The key in another form for each project, which share the provider's account: a hash of at most `length`
    characters."""
    if salt is None:
        return key if len(key) <= length else hashlib.sha256(key.encode()).hexdigest()
    return hmac.digest(salt.encode(), key.encode(), hashlib.sha256).hex()[:length]
