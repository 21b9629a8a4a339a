"""Connections to Redis."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ReadOnlyError

from shared.config.redis_url import parse_redis_url

CONNECTIONS = 32
WAIT_S = 5.0
_packer = HiredisRespSerializer()


class _Primary:
    """Changes to redis-py's connections.

    They pack commands with hiredis, as its synchronous client does: its Python packer takes quadratic time. They close
    themselves if the server has become a replica: after a failover, the same address may lead to another server. And
    they report a connection that the server has just closed as lost: uvloop raises a RuntimeError.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = _packer.pack(*args)
        return packed

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]  # a mixin
        except RuntimeError as error:
            raise ConnectionLost(f"the connection is closed: {error}") from error

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


class _SentinelTcp(_Primary, SentinelManagedConnection):
    pass


class _SentinelTls(_Primary, SentinelManagedSSLConnection):
    pass


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary that the sentinels name."""


def connect_redis(url: str) -> Redis:
    """A client whose calls wait up to 5 s for a free connection instead of failing when all are in use."""
    address = parse_redis_url(url)
    options: dict[str, Any] = {"max_connections": CONNECTIONS, "timeout": WAIT_S, "db": address.db, **address.login}
    options |= address.tls or {}
    if address.path is not None:
        return Redis.from_pool(BlockingConnectionPool(connection_class=_Unix, path=address.path, **options))
    if address.service_name is not None:
        # Without retries: another sentinel is asked instead.
        arguments = {**address.sentinel_arguments(), "retry": Retry(NoBackoff(), 0)}
        sentinel = Sentinel(address.hosts, sentinel_kwargs=arguments)  # type: ignore[no-untyped-call]
        options["connection_class"] = _SentinelTcp if address.tls is None else _SentinelTls
        client: Redis = sentinel.master_for(address.service_name, connection_pool_class=_SentinelPool, **options)
        return client
    ((host, port),) = address.hosts
    options["connection_class"] = _Tcp if address.tls is None else _Tls
    return Redis.from_pool(BlockingConnectionPool(host=host, port=port, **options))
