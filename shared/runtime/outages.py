"""Classifies errors as transient outages (retry) or faults (propagate)."""

from __future__ import annotations

import kombu.exceptions
import redis.exceptions
import sqlalchemy.exc

# SQLSTATE classes and codes: connection lost (08), insufficient resources (53), server shutting down, starting up or
# statement cancelled (57), server turned into a standby (25006), deadlock or serialization failure (40).
_TRANSIENT_STATES = ("08", "53", "57", "25006", "40")

_REDIS = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.OutOfMemoryError,
)
# Error replies of a server that runs but cannot write now, such as one with a full disk or too few replicas.
_REFUSALS = ("MISCONF", "NOREPLICAS", "BUSY ", "LOADING", "MASTERDOWN")


def is_database_outage(error: BaseException) -> bool:
    """Whether the database is unavailable; the statement itself may be correct."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return True
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    if isinstance(state, str) and state.startswith(_TRANSIENT_STATES):
        return True
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        return error.connection_invalidated or isinstance(
            error, sqlalchemy.exc.InterfaceError | sqlalchemy.exc.OperationalError
        )
    return isinstance(error, OSError)


def is_redis_outage(error: BaseException) -> bool:
    """Whether Redis, or the broker on it, is unavailable."""
    if isinstance(error, redis.exceptions.ResponseError) and any(word in str(error) for word in _REFUSALS):
        return True
    return isinstance(error, (*_REDIS, kombu.exceptions.OperationalError, OSError))


def is_outage(error: BaseException) -> bool:
    """Whether the database or Redis is unavailable. Any other error must be raised again, not retried."""
    return is_database_outage(error) or is_redis_outage(error)
