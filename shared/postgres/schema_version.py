"""Checks that the database has the schema that this version needs."""

from __future__ import annotations

import asyncio
import re
import sys

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.config.settings import REPOSITORY
from shared.domain.errors import HeadraceError
from shared.postgres.engine import connect


class SchemaMismatch(HeadraceError):
    """The database does not have the schema that this version needs."""


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "migrations"))
    return config


async def check_schema(engine: AsyncEngine) -> None:
    """Check that the database is not behind the migrations, and not at a schema that this version cannot use.

    A newer schema is accepted if its migration declares that it is compatible with this version, so that processes of
    the previous version can restart during a rolling upgrade.

    Raises:
        SchemaMismatch: names the revision found, the revision needed, and the command to run.
    """
    script = ScriptDirectory.from_config(alembic_config())
    wanted = script.get_current_head()

    def current(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with engine.connect() as connection:
        found = await connection.run_sync(current)
        comment = await connection.scalar(text("SELECT obj_description(to_regclass('alembic_version'))"))
    if found == wanted:
        return
    known = {revision.revision for revision in script.walk_revisions()}
    if found is None or found in known:
        raise SchemaMismatch(
            f"the database is at migration {found or 'none'}, this version needs {wanted};"
            " run: python -m migrations upgrade"
        )
    declared = re.fullmatch(r"(\S+) is compatible since (\S+)", comment or "")
    if declared is not None and declared[1] == found and declared[2] in known:
        return
    raise SchemaMismatch(
        f"the database is at migration {found}, which this version does not know (it needs {wanted});"
        f" run the newer version, or use it to downgrade: python -m migrations downgrade {wanted}"
    )


def database_or_exit(url: str) -> None:
    """Check the database's schema; if it does not match or cannot be read, print an error and exit with status 2."""

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
