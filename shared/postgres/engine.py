"""Connections to PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from sqlalchemy import ColumnElement, event, func, select, true
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.config.postgres_url import driver_arguments
from shared.runtime.outages import is_wrong_server

# Without an address: the driver gets the URL, because SQLAlchemy's URLs lack most of libpq's parameters.
DRIVER = "postgresql+asyncpg://"
# The SQLSTATE of a statement that has reached its `statement_timeout`.
QUERY_CANCELED = "57014"
# How long a transaction with locks that others wait for may wait for this process.
MAX_IDLE_MS = 10_000
_POOL_STATE = "headrace_pool_state"


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


class _PoolState:
    """Which of a pool's connections can be used.

    A connection that the server has closed cannot, nor can those opened before an error that shows that they lead to
    the wrong server: a primary that has become a standby keeps its connections, and they would stay in the pool.
    """

    def __init__(self) -> None:
        self._outdated = float("-inf")

    def on_connect(self, _connection: Any, record: Any) -> None:
        record.info["opened"] = time.monotonic()

    def on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Refuse an unusable connection; the pool opens another. The check needs no round trip."""
        if connection.driver_connection.is_closed() or record.info["opened"] <= self._outdated:
            raise DisconnectionError

    def on_error(self, error: BaseException) -> None:
        if is_wrong_server(error):
            self._outdated = time.monotonic()


def connect(url: str, *, pool_size: int = 10) -> AsyncEngine:
    """Create an engine. It hands out open connections only, so that no request fails because the server was restarted.

    Outside of `transaction`, each statement is a transaction of its own, in one round trip. Waiting for a connection,
    from the pool or from the server, times out after 5 s (or the URL's `connect_timeout`, from the server).
    """
    state = _PoolState()
    engine = create_async_engine(
        DRIVER,
        execution_options={_POOL_STATE: state},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # otherwise errors would quote prompts in the logs
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
        connect_args={"command_timeout": 30, **driver_arguments(url)},
    )
    event.listen(engine.sync_engine, "connect", state.on_connect)
    event.listen(engine.sync_engine, "checkout", state.on_checkout)
    event.listen(engine.sync_engine, "handle_error", lambda context: state.on_error(context.original_exception))
    return engine


def report_error(engine: AsyncEngine, error: BaseException) -> None:
    """Report the error of a statement that the driver ran without SQLAlchemy on a connection of `connect`'s pool."""
    state = engine.sync_engine.get_execution_options().get(_POOL_STATE)
    if isinstance(state, _PoolState):
        state.on_error(error)


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection whose statements are committed together."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            yield connection


def limit_idle() -> ColumnElement[Any]:
    """A column of the statement by which a transaction locks what others may wait for.

    If this process hangs afterwards, for `MAX_IDLE_MS` within the transaction, the server rolls it back.
    """
    return func.set_config("idle_in_transaction_session_timeout", f"{MAX_IDLE_MS}", true())


async def keep_alive(connection: AsyncConnection) -> None:
    """Let the server know that a transaction with `limit_idle` goes on: it may be idle for as long again."""
    await connection.execute(select(true()))
