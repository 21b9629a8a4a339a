"""Celery's Redis transport with changes for failovers, lost connections, malformed messages and batch messages.

Every error that Redis replies is a lost connection. kombu takes most for faults of a command, and Celery ends the
worker with its engine; but a server returns them whenever it becomes a replica or cannot write.

If a connection breaks while messages are reserved, kombu 5.7 continues to use a channel that is detached from its
connection: it closes it again and requeues its messages, or acknowledges one of them. Both raise an AttributeError
that ends the worker and its engine. Here such a channel raises a connection error, which Celery handles. The messages
may be lost by that: they are hints, and their jobs are found by their rows. kombu would also write each of them to a
file in the folder for temporary files, where they would add up while connections come and go.

A consumer that has lost its connection reconnects every second; Celery's own delay grows up to 30 s.

Messages pass a filter before Celery handles them (`workers.consumer.message_filter`).

Batch messages are fetched only while there are free slots for batch jobs (`batch_room`), so that a worker full of batch
jobs still accepts others. kombu waits for messages with a BRPOP on the lists of all priorities; without free slots, the
list of batch messages is left out. Slots that become free during such a BRPOP are filled by polling that list.

While the limits or the circuit breaker of an upstream hold back jobs (`holding`), no BRPOP is started.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from queue import Empty
from typing import Any

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer
from kombu.connection import Connection as KombuConnection
from kombu.exceptions import InconsistencyError
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.json import loads
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError
from redis.retry import Retry

from shared.domain.priorities import BATCH_PRIORITY
from shared.redis.job_queue import list_name
from workers.consumer.message_filter import MAX_COMMAND_BYTES, MessageFilter

logger = logging.getLogger(__name__)

RETRY_S = 1.0
OPTIONS = ("batch_room", "holding", "message_filter")


class Channel(redis.Channel):
    """A channel that raises a connection error if it is detached, filters messages, and fetches batch messages late."""

    from_transport_options = (*redis.Channel.from_transport_options, *OPTIONS)  # type: ignore[assignment]
    batch_room: Callable[[], int] | None = None
    holding: Callable[[], bool] | None = None
    message_filter: MessageFilter | None = None
    # Whether the BRPOP in progress includes the list of batch messages.
    _awaits_batch = False

    def poll_batch(self) -> None:
        """Fetch batch messages into the free slots, if the BRPOP in progress does not."""
        if self.batch_room is None or not self._in_poll or self._awaits_batch or self._holds:
            return  # a BRPOP includes them, or is about to start in this iteration of Celery's loop
        with self.conn_or_acquire() as client:
            for queue in self.active_queues:
                while self.batch_room() > 0 and self.qos.can_consume() and not self._holds:
                    raw = client.rpop(list_name(queue, BATCH_PRIORITY))
                    if raw is None:
                        break
                    self._deliver_raw(raw, queue)

    def close(self) -> None:
        try:
            super().close()  # type: ignore[no-untyped-call]  # kombu has few types
        finally:
            if not self.closed:  # Redis has refused a command: the sockets must not stay open
                self._disconnect_pools()  # type: ignore[no-untyped-call]  # as above
                self._close_clients()  # type: ignore[no-untyped-call]  # as above

    @property
    def _holds(self) -> bool:
        return self.holding is not None and self.holding()

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._holds:
            return  # tried again in the next iteration of Celery's loop, which the end of the hold wakes
        steps = self.priority_steps
        self._awaits_batch = self.batch_room is None or self.batch_room() > 0
        if not self._awaits_batch:
            self.priority_steps = [step for step in steps if step != BATCH_PRIORITY]
        try:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]  # as above
        finally:
            self.priority_steps = steps

    def _brpop_read(self, **options: Any) -> bool:
        """As in kombu, except that what it reads passes the filter."""
        client: Any = self.client
        try:
            try:
                reply = client.parse_response(client.connection, "BRPOP", **options)
            except self.connection_errors:
                client.connection.disconnect()
                raise
            if not reply:
                raise Empty
            key, raw = reply
            queue = key.decode().rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            return self._deliver_raw(raw, queue)
        finally:
            self._in_poll = False
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call]  # as above

    def _deliver_raw(self, raw: bytes, queue: str) -> bool:
        """Deliver a message of a queue, unless the filter drops it."""
        accept = self.message_filter
        message = loads(raw.decode()) if accept is None else accept.from_queue(raw, queue)  # type: ignore[no-untyped-call]
        if message is not None:
            self.connection._deliver(message, queue)
        return True

    def _receive_one(self, client: Any) -> Any:
        """As in kombu, except that no message, whatever is wrong with it, raises an error."""
        if self.message_filter is None:
            return super()._receive_one(client)  # type: ignore[no-untyped-call]  # as above
        try:
            return super()._receive_one(client)  # type: ignore[no-untyped-call]  # as above
        except Empty:
            self.message_filter.drop("control", "not JSON")
        except (RedisError, OSError, InconsistencyError):
            raise
        except Exception as error:
            self.message_filter.drop("control", type(error).__name__)
        return None

    def _handle_message(self, client: Any, response: Any) -> Any:
        payload = super()._handle_message(client, response)  # type: ignore[no-untyped-call]  # as above
        data = payload["data"]
        if self.message_filter is not None and isinstance(data, bytes) and len(data) > MAX_COMMAND_BYTES:
            self.message_filter.drop("control", f"{len(data)} bytes")
            payload["data"] = None  # kombu ignores it
        return payload

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        if self.message_filter is not None and not self.message_filter.accepts_command(message):
            return None
        return super()._deliver_fanout_message(message, exchange)  # type: ignore[no-untyped-call]  # as above

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        """Put an unacknowledged message back on its queue, unless Redis is unavailable."""
        try:
            super()._restore(message, leftmost)  # type: ignore[no-untyped-call]  # as above
        except (RedisError, OSError, InconsistencyError) as error:
            logger.info("a reserved message was not put back: %s", error)

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise ConnectionLost("the connection of this channel is closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]  # as above


class Transport(redis.Transport):
    """A transport with such channels."""

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, RedisError)


class SentinelChannel(Channel, redis.SentinelChannel):
    """The same on a server that sentinels name."""

    from_transport_options = (*redis.SentinelChannel.from_transport_options, *OPTIONS)  # type: ignore[assignment]

    sentinel_kwargs: Any = None

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        # Without retries: another sentinel is asked instead.
        self.sentinel_kwargs = {**self.sentinel_kwargs, "retry": Retry(NoBackoff(), 0)}
        return super()._sentinel_managed_pool(asynchronous)  # type: ignore[no-untyped-call]  # as above


class SentinelTransport(Transport):
    """A transport with those channels."""

    default_port = 26379  # type: ignore[assignment]
    Channel = SentinelChannel


class Connection(KombuConnection):
    """A connection that reconnects at short intervals."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        intervals = {"interval_start": RETRY_S, "interval_step": 0, "interval_max": RETRY_S}
        return super().ensure_connection(*args, **intervals | options)  # type: ignore[no-untyped-call]  # as above


class PacedConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer, with pauses between restarts.

    A server that cannot write accepts connections and refuses the first command on them.
    """

    _restarted = float("-inf")

    def on_connection_error_after_connected(self, error: BaseException) -> None:
        super().on_connection_error_after_connected(error)
        logger.warning("Redis: %s", error)  # Celery logs only the kind of error
        pause_s = self._restarted + RETRY_S - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        self._restarted = time.monotonic()


def use_transport(
    app: Celery, batch_room: Callable[[], int], holding: Callable[[], bool], message_filter: MessageFilter
) -> None:
    """Use these connections in an application, and these transports for all Redis URLs of this process."""
    # Celery would warn at each lost connection that running tasks continue. They should: they are acknowledged early.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{Transport.__name__}"))
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:{SentinelTransport.__name__}"
    app.amqp.Connection = Connection
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "batch_room": batch_room,
        "holding": holding,
        "message_filter": message_filter,
    }
    app.conf.worker_consumer = PacedConsumer
