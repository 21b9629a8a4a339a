"""Celery's Redis transport, with a consumer that survives a lost connection.

Where a connection breaks while messages are reserved, kombu 5.7 goes on to use a channel that has been taken off
its connection: it closes it a second time and puts its messages back, or acknowledges one of them. Both fail with
an AttributeError that no one expects, which ends the worker, engine and all. Here such a channel says that its
connection is lost. Celery knows what to do then, and the messages are hints: what they name is found by its row.

A consumer that has lost its connection tries again every second; Celery itself waits ever longer, up to 30 s.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.connection import Connection as KombuConnection
from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError as ConnectionLost

RETRY_S = 1.0


class Channel(redis.Channel):
    """A channel that knows when it has no connection."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise ConnectionLost("this channel's connection is closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]  # kombu has few types


class Transport(redis.Transport):
    """A transport with that."""

    Channel = Channel


class Connection(KombuConnection):
    """A connection that is made again soon."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        soon = {"interval_start": RETRY_S, "interval_step": 0, "interval_max": RETRY_S}
        return super().ensure_connection(*args, **soon | options)  # type: ignore[no-untyped-call]  # as above


def survive_lost_connections(app: Celery) -> None:
    """Make an application's connections of these, and redis:// and rediss:// mean this transport in this process."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{Transport.__name__}"))
    app.amqp.Connection = Connection
