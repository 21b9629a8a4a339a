"""Statements that run for each job: written with SQLAlchemy, run by the driver.

What SQLAlchemy does for each execution (a cache key, a cursor, a result) takes longer than the statement itself, on the
way of every first token. These are compiled once, and take connections of the same pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql import ClauseElement

_DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Prepared:
    """A statement whose parameters are of types that the driver takes as they are: JSON is text, cast by it."""

    def __init__(self, statement: ClauseElement) -> None:
        compiled: Any = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        self._parameters = frozenset(name for name, bind in compiled.binds.items() if bind.required)
        state = compiled.construct_expanded_state(dict.fromkeys(self._parameters))
        self._sql: str = state.statement
        self._names: list[str] = state.positiontup
        self._literals: Mapping[str, Any] = state.parameters

    async def run(self, engine: AsyncEngine, parameters: Mapping[str, Any]) -> list[Any]:
        """Run it as a transaction of its own, in one round trip. Returns its rows: their columns are attributes.

        Raises:
            TypeError: these are not its parameters.
            sqlalchemy.exc.SQLAlchemyError, OSError: as where SQLAlchemy runs a statement.
        """
        if parameters.keys() != self._parameters:
            raise TypeError(f"the parameters are {sorted(self._parameters)}, not {sorted(parameters)}")
        values = {**self._literals, **parameters}
        closed = False
        try:
            connection = await engine.raw_connection()
            driver: Any = connection.driver_connection
            try:
                records = await driver.fetch(self._sql, *(values[name] for name in self._names))
            except asyncio.CancelledError:
                connection.invalidate()  # as where SQLAlchemy is cut off: what the server still does is not waited for
                raise
            except BaseException:
                closed = driver.is_closed()
                connection.close()
                raise
            connection.close()  # back into the pool
        except _DRIVER_ERRORS as error:
            # Its first argument is the message alone; PostgreSQL's details quote rows.
            message = error.args[0] if error.args else type(error).__name__
            cause = engine.dialect.loaded_dbapi.Error(message, error)
            raise DBAPIError(None, None, cause, hide_parameters=True, connection_invalidated=closed) from error
        except engine.dialect.loaded_dbapi.Error as error:  # SQLAlchemy's own, from a new connection
            raise DBAPIError(None, None, error, hide_parameters=True) from error
        return [SimpleNamespace(**record) for record in records]
