"""The database role of API and workers: it reads and writes rows, and cannot change the schema."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.postgres.engine import connect, transaction


async def grant(url: str, role: str, password: str | None) -> None:
    """Create a role if it does not exist, set its password if one is given, and grant it what API and workers need.

    Tables of later migrations by the same owner are included. Can be repeated.
    """
    engine = connect(url, pool_size=1)
    try:
        async with transaction(engine) as connection:
            await _grant(connection, role, password)
    finally:
        await engine.dispose()


async def _grant(connection: AsyncConnection, role: str, password: str | None) -> None:
    async def quoted(function: str, value: str) -> str:
        return str((await connection.execute(text(f"SELECT {function}(:value)"), {"value": value})).scalar_one())

    async def run(statement: str) -> None:
        await connection.exec_driver_sql(statement)

    name = await quoted("quote_ident", role)
    known = await connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
    if known.first() is None:
        await run(f"CREATE ROLE {name} LOGIN")
    if password is not None:
        await run(f"ALTER ROLE {name} PASSWORD {await quoted('quote_literal', password)}")
    database = await quoted("quote_ident", (await connection.execute(text("SELECT current_database()"))).scalar_one())
    schema = await quoted("quote_ident", (await connection.execute(text("SELECT current_schema()"))).scalar_one())
    await run(f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC")
    await run(f"GRANT CONNECT ON DATABASE {database} TO {name}")
    await run(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
    for tables, sequences in (
        (f"ON ALL TABLES IN SCHEMA {schema}", f"ON ALL SEQUENCES IN SCHEMA {schema}"),
        ("ON TABLES", "ON SEQUENCES"),
    ):
        defaults = f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} " if tables == "ON TABLES" else ""
        await run(f"{defaults}GRANT SELECT, INSERT, UPDATE, DELETE {tables} TO {name}")
        await run(f"{defaults}GRANT USAGE, SELECT {sequences} TO {name}")
    await run(f"REVOKE INSERT, UPDATE, DELETE ON {schema}.alembic_version FROM {name}")
