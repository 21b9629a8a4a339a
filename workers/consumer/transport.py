"""Celery's Redis transport with two changes: it survives lost connections, and fetches batch messages on demand.

If a connection breaks while messages are reserved, kombu 5.7 continues to use a channel that is detached from its
connection: it closes it again and requeues its messages, or acknowledges one of them. Both raise an AttributeError
that ends the worker and its engine. Here such a channel raises a connection error, which Celery handles. The messages
may be lost by that: they are hints, and their jobs are found by their rows.

A consumer that has lost its connection reconnects every second; Celery's own delay grows up to 30 s.

Batch messages are fetched only while there are free slots for batch jobs (`batch_room`), so that a worker full of batch
jobs still accepts others. kombu waits for messages with a BRPOP on the lists of all priorities; without free slots, the
list of batch messages is left out. Slots that become free during such a BRPOP are filled by polling that list.
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
    """A channel that raises a connection error if it is detached, and fetches batch messages only into free slots."""

    from_transport_options = (*redis.Channel.from_transport_options, "batch_room")  # type: ignore[assignment]
    batch_room: Callable[[], int] | None = None
    # Whether the BRPOP in progress includes the list of batch messages.
    _awaits_batch = False

    def poll_batch(self) -> None:
        """Fetch batch messages into the free slots, if the BRPOP in progress does not."""
        if self.batch_room is None or not self._in_poll or self._awaits_batch:
            return  # a BRPOP includes them, or is about to start in this iteration of Celery's loop
        with self.conn_or_acquire() as client:
            for queue in self.active_queues:
                while self.batch_room() > 0 and self.qos.can_consume():
                    message = client.rpop(list_name(queue, BATCH_PRIORITY))
                    if message is None:
                        break
                    self.connection._deliver(loads(message.decode()), queue)  # type: ignore[no-untyped-call]

    def _brpop_start(self, timeout: float | None = None) -> None:
        steps = self.priority_steps
        self._awaits_batch = self.batch_room is None or self.batch_room() > 0
        if not self._awaits_batch:
            self.priority_steps = [step for step in steps if step != BATCH_PRIORITY]
        try:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]  # kombu has few types
        finally:
            self.priority_steps = steps

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise ConnectionLost("the connection of this channel is closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]  # as above


class Transport(redis.Transport):
    """A transport with such channels."""

    Channel = Channel


class Connection(KombuConnection):
    """A connection that reconnects at short intervals."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        intervals = {"interval_start": RETRY_S, "interval_step": 0, "interval_max": RETRY_S}
        return super().ensure_connection(*args, **intervals | options)  # type: ignore[no-untyped-call]  # as above


def use_transport(app: Celery, batch_room: Callable[[], int]) -> None:
    """Use these connections in an application, and this transport for redis:// and rediss:// in this process."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{Transport.__name__}"))
    app.amqp.Connection = Connection
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "batch_room": batch_room}
