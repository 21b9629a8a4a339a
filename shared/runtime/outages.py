"""Classifies errors as transient outages (retry) or faults (propagate).

An outage is every error that says something about the server and nothing about the command: it is unreachable, starting
or stopping, has become a replica, cannot write, has no room left, or refuses the login because a password has just been
changed. A failover returns many of these within seconds, and a process that ended on one would end its engine and all
jobs with it. A wrong setting returns some of them forever: each retry logs a warning, and readiness checks fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import asyncpg
import kombu.exceptions
import redis.exceptions
import sqlalchemy.exc

# SQLSTATE classes and codes: connection lost (08), read-only, such as a server that has become a standby (25006),
# session ended because its transaction was idle or took too long (25P03, 25P04), prepared statement lost by a pooler
# that has switched servers (26000), login refused (28), database missing, such as one that is being restored (3D000),
# deadlock or serialization failure (40), insufficient resources (53), not in the right state, or a lock not available
# (55000, 55P03), server shutting down, starting up or statement cancelled (57), I/O error (58).
_TRANSIENT_STATES = ("08", "25006", "25P03", "25P04", "26000", "28", "3D000", "40", "53", "55000", "55P03", "57", "58")
# Of these, the ones of a connection that leads to the wrong server: it has to be closed, and another to be opened.
_WRONG_SERVER_STATES = ("25006", "26000")
_CLOSED = re.compile(r"connection (is|was) clos(ed|ing)", re.IGNORECASE)

# redis-py removes the code of the replies that have a class of their own. `ExecAbortError` is raised without the error
# of a queued command if the transaction was discarded for another reason, such as the state of the server.
_REDIS_REPLIES = (
    redis.exceptions.AskError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.ExecAbortError,
    redis.exceptions.MovedError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.NoScriptError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
)
# A script or a transaction quotes the code of the reply that it got, so it may stand anywhere in the message.
_REDIS_CODES = re.compile(
    r"\b(ASK|BUSY|CLUSTERDOWN|DENIED|FAILOVER|INPROG|IOERR|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOMASTERLINK|NOPERM"
    r"|NOREPLICAS|NOSCRIPT|NOTREADY|OOM|READONLY|REDIRECT|TRYAGAIN|UNBLOCKED|WRONGPASS)\b"
    r"|max number of clients|invalid password|without any password configured"
)


def is_database_outage(error: BaseException) -> bool:
    """Whether the database is unavailable; the statement itself may be correct."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return True
    if any(map(_is_lost_connection, _chain(error))):
        return True
    if _sqlstate(error).startswith(_TRANSIENT_STATES):
        return True
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        return error.connection_invalidated or isinstance(
            error, sqlalchemy.exc.InterfaceError | sqlalchemy.exc.OperationalError
        )
    return isinstance(error, OSError)


def is_wrong_server(error: BaseException) -> bool:
    """Whether a connection to the database leads to a server that it must not use any more, such as a standby."""
    return _sqlstate(error) in _WRONG_SERVER_STATES


def is_redis_outage(error: BaseException) -> bool:
    """Whether Redis, or the broker on it, is unavailable."""
    if isinstance(error, redis.exceptions.ResponseError):
        return isinstance(error, _REDIS_REPLIES) or _REDIS_CODES.search(str(error)) is not None
    return isinstance(
        error,
        (
            redis.exceptions.ConnectionError,
            redis.exceptions.TimeoutError,
            redis.exceptions.InvalidResponse,
            kombu.exceptions.OperationalError,
            OSError,
        ),
    )


def is_outage(error: BaseException) -> bool:
    """Whether the database or Redis is unavailable. Any other error must be raised again, not retried."""
    return is_database_outage(error) or is_redis_outage(error)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error of the driver that has no SQLSTATE says that there is no usable connection.

    None of several servers is the primary, the state of a broken connection is inconsistent, or a new connection was
    closed while it was set up.
    """
    if isinstance(error, asyncpg.InternalClientError):
        return True
    return isinstance(error, asyncpg.InterfaceError) and _CLOSED.search(str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes: SQLAlchemy wraps those of the driver."""
    while error is not None:
        yield error
        error = error.__cause__


def _sqlstate(error: BaseException) -> str:
    """The SQLSTATE of an error of the driver, or of SQLAlchemy's for it; '' if it has none."""
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state if isinstance(state, str) else ""
