"""Celery's Redis transport, with a consumer that survives a lost connection and leaves batches where they are.

Where a connection breaks while messages are reserved, kombu 5.7 goes on to use a channel that has been taken off
its connection: it closes it a second time and puts its messages back, or acknowledges one of them. Both fail with
an AttributeError that no one expects, which ends the worker, engine and all. Here such a channel says that its
connection is lost. Celery knows what to do then, and the messages are hints: what they name is found by its row.

A consumer that has lost its connection tries again every second; Celery itself waits ever longer, up to 30 s.

Messages of batches are taken only while there is room for them (`batch_room`), so that a worker full of batch jobs
has its hands free for others. kombu waits for messages with a BRPOP over the lists of all priorities; without room
it leaves the batches' list out. Room that comes while such a BRPOP waits is filled by looking at that list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu.connection import Connection as KombuConnection
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.json import loads
from redis.exceptions import ConnectionError as ConnectionLost

from shared.domain.priorities import BATCH_PRIORITY
from shared.redis.job_queue import list_name

RETRY_S = 1.0


class Channel(redis.Channel):
    """A channel that knows when it has no connection, and takes batches' messages only where there is room."""

    from_transport_options = (*redis.Channel.from_transport_options, "batch_room")  # type: ignore[assignment]
    batch_room: Callable[[], int] | None = None
    _batch_awaited = False

    def look_for_batch(self) -> None:
        """Take what there is room for from the batches' list, where nothing waits for it."""
        if self.batch_room is None or not self._in_poll or self._batch_awaited:
            return  # it is waited for, or will be in this turn of Celery's loop
        with self.conn_or_acquire() as client:
            for queue in self.active_queues:
                while self.batch_room() > 0 and self.qos.can_consume():
                    message = client.rpop(list_name(queue, BATCH_PRIORITY))
                    if message is None:
                        break
                    self.connection._deliver(loads(message.decode()), queue)  # type: ignore[no-untyped-call]

    def _brpop_start(self, timeout: float | None = None) -> None:
        steps = self.priority_steps
        self._batch_awaited = self.batch_room is None or self.batch_room() > 0
        if not self._batch_awaited:
            self.priority_steps = [step for step in steps if step != BATCH_PRIORITY]
        try:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]  # kombu has few types
        finally:
            self.priority_steps = steps

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise ConnectionLost("this channel's connection is closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]  # as above


class Transport(redis.Transport):
    """A transport with that."""

    Channel = Channel


class Connection(KombuConnection):
    """A connection that is made again soon."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        soon = {"interval_start": RETRY_S, "interval_step": 0, "interval_max": RETRY_S}
        return super().ensure_connection(*args, **soon | options)  # type: ignore[no-untyped-call]  # as above


def use_transport(app: Celery, batch_room: Callable[[], int]) -> None:
    """Make an application's connections of these, and redis:// and rediss:// mean this transport in this process."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{Transport.__name__}"))
    app.amqp.Connection = Connection
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "batch_room": batch_room}
