"""Tests for api.http.transport."""

from __future__ import annotations

import asyncio
from typing import Any

from api.http.transport import ClientTransport


class Recorded(asyncio.Transport):
    """Records what is written. Without a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self._is_closing = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True


class Connection:
    """A protocol, of which a request is complete or not."""

    def __init__(self, *, request_is_incomplete: bool = False) -> None:
        self.request_is_incomplete = request_is_incomplete
        self.lingers = False

    def linger(self) -> None:
        self.lingers = True


async def test_head_and_body_are_one_write() -> None:
    inner = Recorded()
    transport = ClientTransport(inner, Connection())
    for _ in range(2):
        inner.writes.clear()
        transport.expect_head()
        transport.write(b"head;")
        transport.write(b"body")
        transport.write(b"more")
        await asyncio.sleep(0)
        assert inner.writes == [b"head;body", b"more"]


async def test_a_head_does_not_wait_longer_than_the_step_of_the_loop() -> None:
    inner = Recorded()
    transport = ClientTransport(inner, Connection())
    transport.expect_head()
    transport.write(b"head;")
    transport.expect_head()  # the client has sent another request ahead
    await asyncio.sleep(0)
    assert inner.writes == [b"head;"]
    transport.write(b"body")
    assert inner.writes == [b"head;", b"body"]


async def test_closing_sends_a_head_that_waits() -> None:
    for connection in (Connection(), Connection(request_is_incomplete=True)):
        inner = Recorded()
        transport = ClientTransport(inner, connection)
        transport.expect_head()
        transport.write(b"head;")
        transport.close()
        assert inner.writes == [b"head;"]
        assert transport.is_closing()
        assert (inner.is_closing(), connection.lingers) == (not connection.lingers, connection.request_is_incomplete)


async def test_nothing_is_written_to_an_aborted_connection() -> None:
    inner = Recorded()
    transport = ClientTransport(inner, Connection())
    transport.expect_head()
    transport.write(b"head;")
    transport.abort()
    await asyncio.sleep(0)
    assert inner.writes == []
