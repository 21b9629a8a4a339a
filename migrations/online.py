"""Schema changes while other processes write: short locks, which are tried again instead of waited for.

A statement that waits for an exclusive lock makes everything behind it wait too, and two locks in one transaction can
deadlock with writers that take them in another order. So each statement is a transaction of its own, gives up after
`LOCK_TIMEOUT`, and is repeated. Statements must therefore be idempotent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from alembic import op
from sqlalchemy import Connection, CursorResult, text
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")
LOCK_TIMEOUT = "2s"
ATTEMPTS = 60
PAUSE_S = 1.0
# SQLSTATEs: lock_not_available, deadlock_detected.
RETRIED = ("55P03", "40P01")


def execute(statement: str, parameters: Mapping[str, Any] | None = None) -> CursorResult[Any]:
    """Run one statement in a transaction of its own. Only within `op.get_context().autocommit_block()`.

    Raises:
        sqlalchemy.exc.DBAPIError: the statement failed, or could not get its locks in `ATTEMPTS` attempts.
    """
    return _repeated(lambda connection: connection.execute(text(statement), parameters or {}))


def has_column(table: str, column: str) -> bool:
    """Whether a table has a column."""
    name = {"table": table, "column": column}
    found = """
        SELECT count(*) FROM pg_attribute
        WHERE attrelid = to_regclass(:table) AND attname = :column AND NOT attisdropped
    """
    return bool(execute(found, name).scalar())


def create_index(name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index without blocking writes. `definition` follows its name: `ON table (...)`.

    The build waits for older transactions, and gives up like every statement. What an attempt has left behind, an
    invalid index, is dropped before the next.
    """

    def build(connection: Connection) -> None:
        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
        connection.execute(text(f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY {name} {definition}"))

    _repeated(build)


def _repeated(attempt: Callable[[Connection], T]) -> T:
    """Run statements with short lock timeouts, again if they get no lock."""
    connection = op.get_bind()
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    try:
        for _ in range(ATTEMPTS - 1):
            try:
                return attempt(connection)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in RETRIED:
                    raise
                time.sleep(PAUSE_S)
        return attempt(connection)
    finally:
        connection.execute(text("SET lock_timeout = DEFAULT"))


def declare_compatible(revision: str, oldest: str) -> None:
    """Record that the version with revision `oldest`, and those after it, can run on the schema of `revision`.

    So a process of the previous version can restart during a rolling upgrade (`shared.postgres.schema_version`). The
    record names the revision, so that one of a migration that declares nothing does not count.
    """
    execute(f"COMMENT ON TABLE alembic_version IS '{revision} is compatible since {oldest}'")
