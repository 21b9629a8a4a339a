"""Statements that run for each job: written with SQLAlchemy, run by the driver.

What SQLAlchemy does for each execution (a cache key, a cursor, a result) takes longer than the statement itself, on the
way of every first token. These are compiled once, and take connections of the same pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql import ClauseElement


class Prepared:
    """A statement whose parameters are of types that the driver takes as they are: JSON is text, cast by it."""

    def __init__(self, statement: ClauseElement) -> None:
        compiled: Any = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        without_value = {name: None for name, value in compiled.params.items() if value is None}
        state = compiled.construct_expanded_state(without_value)
        self._sql: str = state.statement
        self._names: list[str] = state.positiontup
        self._values: Mapping[str, Any] = state.parameters

    async def run(self, engine: AsyncEngine, parameters: Mapping[str, Any]) -> list[Any]:
        """Run it as a transaction of its own, in one round trip. Returns its rows: their columns are attributes.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, OSError: as where SQLAlchemy runs a statement.
        """
        values = {**self._values, **parameters}
        closed = False
        try:
            connection = await engine.raw_connection()
            driver: Any = connection.driver_connection
            try:
                records = await driver.fetch(self._sql, *(values[name] for name in self._names))
            finally:
                closed = driver.is_closed()
                connection.close()  # back into the pool
        except (asyncpg.PostgresError, asyncpg.InterfaceError, engine.dialect.loaded_dbapi.Error) as error:
            raise DBAPIError(None, None, error, hide_parameters=True, connection_invalidated=closed) from error
        return [SimpleNamespace(**record) for record in records]
