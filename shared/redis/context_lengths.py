"""The context lengths that upstreams report, from the workers to the API.

Redis may lose them: the workers write them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from shared.redis import keys

# After the last worker of a model has ended, its upstream may change.
TTL_S = 86_400


class ContextLengths:
    """Context lengths in tokens, by `Spec.context_source`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def write(self, source: str, tokens: int) -> None:
        await self._redis.set(keys.context_length(source), tokens, ex=TTL_S)

    async def read(self, sources: Sequence[str]) -> dict[str, int]:
        """The lengths that are known of these sources."""
        if not sources:
            return {}
        values = await self._redis.mget([keys.context_length(source) for source in sources])
        return {source: int(value) for source, value in zip(sources, values, strict=True) if value is not None}
