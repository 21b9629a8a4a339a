"""The schema: its steps run up, down and up again, and end where the models are."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.schema_version import SchemaMismatch, check_schema
from shared.postgres.tables import Base
from tests.support.database import migrate


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_server_default": True})
    return list(compare_metadata(context, Base.metadata))


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_models_equal_migrations(database: AsyncEngine) -> None:
    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_up_down_and_up_again(database: AsyncEngine, database_url: str) -> None:
    migrate(database_url, "downgrade", "base")
    async with database.connect() as connection:
        assert await connection.run_sync(tables) == {"alembic_version"}
    migrate(database_url, "upgrade")
    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_behind_is_refused(database: AsyncEngine, database_url: str) -> None:
    migrate(database_url, "downgrade", "base")
    with pytest.raises(SchemaMismatch, match="python -m migrations upgrade"):
        await check_schema(database)


async def test_a_database_ahead_is_refused(database: AsyncEngine, database_url: str) -> None:
    await check_schema(database)
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'from-the-future'")
    with pytest.raises(SchemaMismatch, match="does not know"):
        await check_schema(database)
