"""Whether the database has the schema that this code was written for."""

from __future__ import annotations

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.errors import HeadraceError
from shared.settings import REPOSITORY


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
