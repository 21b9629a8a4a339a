"""Statements that run for each job: written with SQLAlchemy, run by the driver.

SQLAlchemy's work per execution (a cache key, a cursor, a result) takes longer than the statement itself, and delays
every first token. These statements are compiled once, and use connections of the same pool.
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

from shared.postgres.engine import report_error

_DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Prepared:
    """A compiled statement. Its parameters have types that the driver accepts: JSON is text that the statement casts.

    `statement` is the original, which SQLAlchemy can execute within a transaction.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self.statement: Any = statement
        compiled: Any = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        self._parameters = frozenset(name for name, bind in compiled.binds.items() if bind.required)
        state = compiled.construct_expanded_state(dict.fromkeys(self._parameters))
        self._sql: str = state.statement
        self._names: list[str] = state.positiontup
        self._literals: Mapping[str, Any] = state.parameters

    async def run(self, engine: AsyncEngine, parameters: Mapping[str, Any]) -> list[Any]:
        """Run it as a transaction of its own, in one round trip. Returns rows with their columns as attributes.

        Raises:
            TypeError: parameters are missing or unknown.
            sqlalchemy.exc.SQLAlchemyError, OSError: as if SQLAlchemy ran the statement.
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
                connection.invalidate()  # as SQLAlchemy does if cancelled: it does not wait for the server
                raise
            except BaseException:
                closed = driver.is_closed()
                connection.close()
                raise
            connection.close()  # returns it to the pool
        except _DRIVER_ERRORS as error:
            report_error(engine, error)
            # The first argument is only the message; PostgreSQL's details quote rows.
            message = error.args[0] if error.args else type(error).__name__
            cause = engine.dialect.loaded_dbapi.Error(message, error)
            raise DBAPIError(None, None, cause, hide_parameters=True, connection_invalidated=closed) from error
        except engine.dialect.loaded_dbapi.Error as error:  # raised by SQLAlchemy for a new connection
            raise DBAPIError(None, None, error, hide_parameters=True) from error
        return [SimpleNamespace(**record) for record in records]
