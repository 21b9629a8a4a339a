"""Checks that Redis accepts writes: a replica and a full server answer `PING` too."""

from __future__ import annotations

from redis.asyncio import Redis

from shared.redis import keys

TTL_S = 60


async def check_writes(redis: Redis) -> None:
    """Write a key.

    Raises:
        RedisError: the server cannot be reached or rejects writes.
    """
    await redis.set(keys.write_check(), 1, ex=TTL_S)
