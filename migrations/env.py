"""Alembic's environment: runs the migrations with asyncpg, in one process at a time."""

from __future__ import annotations

import asyncio
import time

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

import shared.postgres.quality_tables  # adds its tables to those of `Base`
import shared.postgres.request_log_tables
import shared.postgres.usage_tables
import shared.postgres.webhook_tables  # noqa: F401
from shared.config.postgres_url import driver_arguments
from shared.postgres.engine import DRIVER
from shared.postgres.tables import Base

# Two processes that start at the same time must not migrate at the same time.
ADVISORY_LOCK = 7_431_987_102
RETRY_S = 0.2


def run(connection: Connection) -> None:
    _lock(connection)
    # One transaction per migration, so that a migration can commit in batches or build indexes concurrently.
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _lock(connection: Connection) -> None:
    """Wait for the lock, which this session then holds until it is closed.

    The lock is polled: a statement that waits for it would deadlock with a concurrent index build by the holder, which
    waits for all older transactions.
    """
    while not connection.execute(text(f"SELECT pg_try_advisory_lock({ADVISORY_LOCK})")).scalar():
        connection.commit()
        time.sleep(RETRY_S)
    connection.commit()


async def connect_and_run() -> None:
    arguments = driver_arguments(context.config.attributes["url"])
    engine = create_async_engine(DRIVER, poolclass=pool.NullPool, connect_args=arguments)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


asyncio.run(connect_and_run())
