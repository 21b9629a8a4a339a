"""Celery's Redis transport, with a consumer that survives a lost connection.

Where a connection breaks while messages are reserved, kombu 5.7 closes the channel a second time after it has
taken the connection's address away, tries to put those messages back, and fails with an AttributeError that ends
the worker, engine and all. Here they are let go: a message is a hint, and these jobs are in the pool already, or
are found by their rows.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis


class QoS(redis.QoS):
    """Puts reserved messages back on the queue, where there still is one."""

    def restore_unacked(self, client: Any = None) -> Any:
        if self.channel.connection.client is None:
            self._delivered.clear()
            return None
        return super().restore_unacked(client)  # type: ignore[no-untyped-call]  # kombu has few types


class Channel(redis.Channel):
    """A channel with that."""

    QoS = QoS


class Transport(redis.Transport):
    """A transport with that."""

    Channel = Channel


def use_lasting_transport() -> None:
    """From now on, redis:// and rediss:// mean this transport in this process."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{Transport.__name__}"))
