"""The workers' Redis transport: batch messages on demand, and connections lost with reserved messages."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from redis.asyncio import Redis

from launcher.embedded import start_valkey
from shared.domain.priorities import BATCH_PRIORITY
from shared.redis.job_queue import celery_app
from tests.conftest import TEST_REDIS_DB, Servers
from workers.consumer.transport import Transport

KOMBU: Any = kombu  # it exports no types


@pytest.fixture
def connection(servers: Servers, redis: Redis) -> Iterator[Any]:
    with KOMBU.Connection(servers.redis(TEST_REDIS_DB), transport=Transport) as opened:
        yield opened


def test_batch_messages_wait_for_free_slots_and_delay_no_others(servers: Servers, redis: Redis) -> None:
    """Without free slots for batch jobs, urgent messages are fetched; a poll fetches as many batch messages as fit."""
    room = 1
    taken: list[str] = []
    app = celery_app(servers.redis(TEST_REDIS_DB))
    options = {**app.conf.broker_transport_options, "batch_room": lambda: room}
    with KOMBU.Connection(servers.redis(TEST_REDIS_DB), transport=Transport, transport_options=options) as connection:
        channel = connection.channel()
        queue = KOMBU.Queue("jobs")
        producer = connection.Producer(channel)

        def publish(body: str, priority: int) -> None:
            producer.publish(body, routing_key="jobs", declare=[queue], priority=priority)

        def take(body: str, message: Any) -> None:
            nonlocal room
            taken.append(body)
            room -= body.startswith("batch")
            message.ack()

        for number in range(4):
            publish(f"batch {number}", BATCH_PRIORITY)
        with connection.Consumer(queue, callbacks=[take], channel=channel):
            connection.drain_events(timeout=5)
            assert taken == ["batch 0"]
            publish("urgent", 3)
            connection.drain_events(timeout=5)
            assert taken == ["batch 0", "urgent"]

            channel._brpop_start()
            room = 2
            channel.poll_batch()
            assert taken == ["batch 0", "urgent", "batch 1", "batch 2"]
            channel.poll_batch()
            assert len(taken) == 4, "no slot is free"
            publish("another", 0)
            connection.drain_events(timeout=5)

            room = 1
            channel._brpop_start()
            channel.poll_batch()
            assert taken[4:] == ["another"], "the BRPOP in progress includes batch messages"
            connection.drain_events(timeout=5)
            assert taken[5:] == ["batch 3"]


def test_nothing_is_fetched_while_an_upstream_holds_jobs_back(servers: Servers, redis: Redis) -> None:
    """The messages stay on the queue, and are fetched afterwards."""
    holding = True
    taken: list[str] = []
    app = celery_app(servers.redis(TEST_REDIS_DB))
    options = {**app.conf.broker_transport_options, "batch_room": lambda: 1, "holding": lambda: holding}
    with KOMBU.Connection(servers.redis(TEST_REDIS_DB), transport=Transport, transport_options=options) as connection:
        channel = connection.channel()
        queue = KOMBU.Queue("jobs")
        for priority in (3, BATCH_PRIORITY):
            connection.Producer(channel).publish(str(priority), routing_key="jobs", declare=[queue], priority=priority)

        def take(body: str, message: Any) -> None:
            taken.append(body)
            message.ack()

        with connection.Consumer(queue, callbacks=[take], channel=channel):
            channel._brpop_start()
            channel.poll_batch()
            assert not channel._in_poll
            assert taken == []
            holding = False
            for _ in range(2):
                connection.drain_events(timeout=5)
            assert taken == ["3", str(BATCH_PRIORITY)]


def test_a_closed_channel_raises_a_connection_error(connection: Any) -> None:
    """Celery survives connection errors; the AttributeError that kombu raised here ended the worker."""
    channel = connection.channel()
    KOMBU.Queue("jobs", channel=channel).declare()
    connection.Producer(channel).publish("a hint", routing_key="jobs")
    message = channel.basic_get("jobs")
    channel.close()
    channel._disconnect_pools()  # as after a broken connection
    with pytest.raises(connection.connection_errors, match="closed"):
        message.ack()


def test_messages_that_cannot_be_put_back_leave_no_files(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are reserved when the server goes away, and their jobs are found by their rows."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = start_valkey(tmp_path_factory.mktemp("valkey"), persist=False)
    try:
        app = celery_app(server.url)
        with KOMBU.Connection(
            server.url, transport=Transport, transport_options=app.conf.broker_transport_options
        ) as connection:
            channel = connection.channel()
            queue = KOMBU.Queue("jobs", channel=channel)
            queue.declare()
            connection.Producer(channel).publish("a hint", routing_key="jobs")
            assert channel.basic_get("jobs") is not None
            server.stop()
            channel.close()
    finally:
        server.stop()
    assert list(tmp_path.iterdir()) == []
