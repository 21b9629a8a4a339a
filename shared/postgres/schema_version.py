"""Whether the database has the schema that this code was written for."""

from __future__ import annotations

import asyncio
import sys

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.config.settings import REPOSITORY
from shared.domain.errors import HeadraceError
from shared.postgres.engine import connect


class SchemaMismatch(HeadraceError):
    """The database's schema is not the one that this version needs."""


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "migrations"))
    return config


async def check_schema(engine: AsyncEngine) -> None:
    """Refuse to run on a database that is behind its migrations, or ahead of this code.

    Raises:
        SchemaMismatch: says which revision it has, which it needs, and the command.
    """
    script = ScriptDirectory.from_config(alembic_config())
    wanted = script.get_current_head()

    def current(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with engine.connect() as connection:
        found = await connection.run_sync(current)
    if found == wanted:
        return
    known = found is None or any(revision.revision == found for revision in script.walk_revisions())
    if known:
        raise SchemaMismatch(
            f"the database is at migration {found or 'none'}, this version needs {wanted};"
            " run: python -m migrations upgrade"
        )
    raise SchemaMismatch(
        f"the database is at migration {found}, which this version does not know (it needs {wanted});"
        " run a newer Headrace, or go back: python -m migrations downgrade"
    )


def database_or_exit(url: str) -> None:
    """Make sure that the database has this version's schema; where not, say so and exit with 2."""

    async def check() -> None:
        engine = connect(url, pool_size=1)
        try:
            await check_schema(engine)
        finally:
            await engine.dispose()

    try:
        asyncio.run(check())
    except SchemaMismatch as error:
        print(f"DATABASE_URL: {error}", file=sys.stderr)
        sys.exit(2)
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        sys.exit(2)
