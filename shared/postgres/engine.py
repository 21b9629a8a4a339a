"""Connections to PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def connect(url: str, *, pool_size: int = 10) -> AsyncEngine:
    """Create an engine. It hands out open connections only, so that no request fails because the server was restarted.

    Outside of `transaction`, each statement is a transaction of its own, in one round trip. Waiting for a connection,
    from the pool or from the server, times out after 5 s.
    """
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # otherwise errors would quote prompts in the logs
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
        connect_args={"timeout": 5, "command_timeout": 30, "server_settings": {"application_name": "headrace"}},
    )
    event.listen(engine.sync_engine, "checkout", _open)
    return engine


def _open(connection: Any, _record: Any, _proxy: Any) -> None:
    """Refuse a connection that the server has closed; the pool opens another. The check needs no round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection whose statements are committed together."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            yield connection
