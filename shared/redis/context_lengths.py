"""The context lengths that upstreams report, from the workers to the API, and which of them it refused requests for.

Redis may lose them: the workers write the lengths again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from redis.asyncio import Redis

from shared.redis import keys

# A length without a worker that could read it again must not refuse requests for long: without requests, models whose
# workers are scaled to zero get none.
TTL_S = 600
# Longer than a worker uses a length before it reads it again.
REFUSAL_TTL_S = 90


class ContextLengths:
    """Context lengths in tokens, by `Spec.context_source`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def write(self, source: str, tokens: int | None) -> None:
        """Replace the length by one that has just been read. None: the upstream reports none any more."""
        if tokens is None:
            await self._redis.delete(keys.context_length(source))
        else:
            await self._redis.set(keys.context_length(source), tokens, ex=TTL_S)

    async def keep(self, source: str, tokens: int) -> None:
        """Write a length that was read earlier, unless there is one, which another worker may have read later."""
        key = keys.context_length(source)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(key, tokens, ex=TTL_S, nx=True)
            pipeline.expire(key, TTL_S)
            await pipeline.execute()

    async def read(self, sources: Sequence[str]) -> dict[str, int]:
        """The lengths that are known of these sources."""
        if not sources:
            return {}
        values = await self._redis.mget([keys.context_length(source) for source in sources])
        return {source: int(value) for source, value in zip(sources, values, strict=True) if value is not None}

    async def note_refusals(self, sources: Collection[str]) -> None:
        """Let the workers know that requests were refused because of these lengths."""
        for source in sources:
            await self._redis.set(keys.context_refusal(source), 1, ex=REFUSAL_TTL_S)

    async def has_refused(self, source: str) -> bool:
        """Whether a request was refused because of the length a short time ago."""
        return bool(await self._redis.exists(keys.context_refusal(source)))
