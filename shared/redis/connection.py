"""Connections to Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.connection import HiredisRespSerializer

CONNECTIONS = 32
WAIT_S = 5.0
_packer = HiredisRespSerializer()


class _Packing:
    """Packs commands with hiredis, as redis-py's synchronous client does. Its Python packer takes quadratic time."""

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = _packer.pack(*args)
        return packed


class _Tcp(_Packing, Connection):
    pass


class _Tls(_Packing, SSLConnection):
    pass


class _Unix(_Packing, UnixDomainSocketConnection):
    pass


_PACKING: Mapping[Any, Any] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


def connect_redis(url: str) -> Redis:
    """A client whose calls wait up to 5 s for a free connection instead of failing when all are in use."""
    pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=WAIT_S)
    pool.connection_class = _PACKING[pool.connection_class]
    return Redis.from_pool(pool)
