"""The connection to Redis."""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool, Redis

CONNECTIONS = 32
WAIT_S = 5.0


def connect_redis(url: str) -> Redis:
    """A client whose calls wait for one of its connections, up to 5 s, rather than fail when all are in use."""
    return Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=WAIT_S))
