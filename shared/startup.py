"""Starting a process: settings and a database that are right, or a message that says what is wrong."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings
from sqlalchemy.exc import SQLAlchemyError

from shared.db import connect
from shared.schema import SchemaMismatch, check_schema

S = TypeVar("S", bound=BaseSettings)


# New objects that are not freed again, between two looks of the collector at the young, and young looks to an old one.
COLLECT = (20_000, 20, 50)


def settle() -> None:
    """Call when everything is loaded: what is there now stays, and the collector need not walk it ever again.

    Its walks over the modules of a large program stop the event loop for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)


def settings_or_exit(kind: type[S]) -> S:
    """Read settings; where one is missing or wrong, say so by its variable's name and exit with 2."""
    try:
        return kind()
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix", ""))
        for problem in error.errors(include_url=False):
            field = str(problem["loc"][0])
            name = field if field.isupper() else f"{prefix}{field}".upper()
            print(f"{name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        sys.exit(2)


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
