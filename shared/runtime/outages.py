"""Tells an outage, which is waited out, from a fault, which is not."""

from __future__ import annotations

import kombu.exceptions
import redis.exceptions
import sqlalchemy.exc

# SQLSTATEs: the connection is lost (08...), the server is full (53...), goes down, comes up or takes too long (57...),
# has become a standby (25006), or has two transactions in each other's way (40...).
_AWAY = ("08", "53", "57", "25006", "40")

_REDIS = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.OutOfMemoryError,
)
# What a server answers that runs and cannot write now: its disk is full, its replicas are away, a script holds it.
_REFUSES = ("MISCONF", "NOREPLICAS", "BUSY ", "LOADING", "MASTERDOWN")


def is_database_outage(error: BaseException) -> bool:
    """The database cannot be used now; the statement may be fine."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return True
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    if isinstance(state, str) and state.startswith(_AWAY):
        return True
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        return error.connection_invalidated or isinstance(
            error, sqlalchemy.exc.InterfaceError | sqlalchemy.exc.OperationalError
        )
    return isinstance(error, OSError)


def is_redis_outage(error: BaseException) -> bool:
    """Redis, or the broker on it, cannot be used now."""
    if isinstance(error, redis.exceptions.ResponseError) and any(word in str(error) for word in _REFUSES):
        return True
    return isinstance(error, (*_REDIS, kombu.exceptions.OperationalError, OSError))


def is_outage(error: BaseException) -> bool:
    """One of the two is away. Anything else must not be waited out: raise it again."""
    return is_database_outage(error) or is_redis_outage(error)
