"""Connections to Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ReadOnlyError

CONNECTIONS = 32
WAIT_S = 5.0
_packer = HiredisRespSerializer()


class _Primary:
    """Changes to redis-py's connections.

    They pack commands with hiredis, as its synchronous client does: its Python packer takes quadratic time. And they
    close themselves if the server has become a replica: after a failover, the same address may lead to another server.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = _packer.pack(*args)
        return packed

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]  # a mixin
        except ReadOnlyError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # a mixin
            raise ConnectionLost(f"the Redis server is read-only: {error}") from error


class _Tcp(_Primary, Connection):
    pass


class _Tls(_Primary, SSLConnection):
    pass


class _Unix(_Primary, UnixDomainSocketConnection):
    pass


_CLASSES: Mapping[Any, Any] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


def connect_redis(url: str) -> Redis:
    """A client whose calls wait up to 5 s for a free connection instead of failing when all are in use."""
    pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=WAIT_S)
    pool.connection_class = _CLASSES[pool.connection_class]
    return Redis.from_pool(pool)
