"""Databases for tests, which are copies of a migrated template."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.store import ApiKeyStore
from shared.config.postgres_url import driver_arguments
from shared.domain.owner import Owner
from tests.support.forked import run_forked

TEMPLATE = "headrace_template"


def switch_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def run_sql(url: str, *statements: str) -> None:
    """Run statements, each in its own transaction.

    By the driver: each database of a test is created and dropped here, and SQLAlchemy takes four times as long to
    connect.
    """

    async def run() -> None:
        connection: Any = await asyncpg.connect(**driver_arguments(url))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

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
