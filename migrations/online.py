"""Schema changes while other processes write: short locks, which are tried again instead of waited for.

A statement that waits for an exclusive lock makes everything behind it wait too, and two locks in one transaction can
deadlock with writers that take them in another order. So each statement is a transaction of its own, gives up after
`LOCK_TIMEOUT`, and is repeated. Statements must therefore be idempotent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from alembic import op
from sqlalchemy import CursorResult, text
from sqlalchemy.exc import DBAPIError

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
    connection = op.get_bind()
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    try:
        for _ in range(ATTEMPTS - 1):
            try:
                return connection.execute(text(statement), parameters or {})
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in RETRIED:
                    raise
                time.sleep(PAUSE_S)
        return connection.execute(text(statement), parameters or {})
    finally:
        connection.execute(text("SET lock_timeout = DEFAULT"))


def declare_compatible(revision: str, oldest: str) -> None:
    """Record that the version with revision `oldest`, and those after it, can run on the schema of `revision`.

    So a process of the previous version can restart during a rolling upgrade (`shared.postgres.schema_version`). The
    record names the revision, so that one of a migration that declares nothing does not count.
    """
    execute(f"COMMENT ON TABLE alembic_version IS '{revision} is compatible since {oldest}'")
