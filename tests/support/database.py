"""Databases for tests, which are copies of a migrated template."""

from __future__ import annotations

import asyncio
import os
import subprocess

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from api.keys.store import ApiKeyStore
from shared.domain.owner import Owner
from tests.support.forked import run_forked

TEMPLATE = "headrace_template"


def switch_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def run_sql(url: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""

    async def run() -> None:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        await engine.dispose()

    asyncio.run(run())


def create_database(url: str, name: str, *, template: str = "template1") -> None:
    run_sql(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


def drop_database(url: str, name: str) -> None:
    run_sql(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def migrate(url: str, step: str = "upgrade", *revision: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m migrations`."""
    return run_forked("migrations", step, *revision, environment={**os.environ, "DATABASE_URL": url}, check=True)


async def make_owner(engine: AsyncEngine, name: str) -> Owner:
    """Create a project with one key, both named `name`."""
    keys, key = ApiKeyStore(engine), f"hr_{name}_" + "k" * 43
    await keys.create(name, key)
    found = await keys.find(key)
    assert found is not None
    return found.principal.owner
