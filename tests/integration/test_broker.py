"""The workers' Redis transport, where its connection is lost with messages in hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from redis.asyncio import Redis

from tests.conftest import TEST_REDIS_DB, Servers
from workers.broker import Transport

KOMBU: Any = kombu  # it exports no types


@pytest.fixture
def connection(servers: Servers, redis: Redis) -> Iterator[Any]:
    with KOMBU.Connection(servers.redis(TEST_REDIS_DB), transport=Transport) as opened:
        yield opened


def test_a_closed_channel_says_so(connection: Any) -> None:
    """Celery waits out connection errors; kombu's own AttributeError here ended the worker."""
    channel = connection.channel()
    KOMBU.Queue("jobs", channel=channel).declare()
    connection.Producer(channel).publish("a hint", routing_key="jobs")
    message = channel.basic_get("jobs")
    channel.close()
    channel._disconnect_pools()  # as where the connection broke
    with pytest.raises(connection.connection_errors, match="closed"):
        message.ack()
