"""The HTTP client of webhooks, with real receivers: framing, kept connections, and receivers that do harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpcore
import httpx
import pytest

from api.webhooks import http_client
from api.webhooks.address_guard import open_client
from api.webhooks.http_client import Answer, BadAnswer, Destination, HttpClient, NoAnswer, _request
from tests.support.webhooks import LOCAL, Received, Receiver, post, receiving, status
from tests.support.webhooks import Answer as Reply


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    async with open_client(LOCAL) as client:
        yield client


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


def raw(answer: bytes, *, keep: bool = True) -> Reply:
    """Answer with these bytes."""

    async def write(_request: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer)
        await writer.drain()
        return keep

    return write


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


async def test_a_request_is_complete(client: HttpClient, receiver: Receiver) -> None:
    url = httpx.URL(receiver.url).copy_with(path="/a b/é", query=b"c=d&e")
    to = Destination.of(url)
    answer = await client.post(to, {"webhook-id": "evt_1"}, b'{"a":1}', timeout_s=5, answer_s=1)
    assert answer == Answer(200, None)
    (request,) = receiver.requests
    assert request.path == "/a%20b/%C3%A9?c=d&e"
    assert request.body == b'{"a":1}'
    headers = dict(request.headers)
    assert headers.pop("user-agent").startswith("Headrace/")
    assert headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": "7",
        "webhook-id": "evt_1",
    }


@pytest.mark.parametrize("value", ["a\r\nhost: other", "a\nb", "a\0", "é"])
def test_no_value_ends_its_header(value: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        _request(Destination.of(httpx.URL("https://example.com/")), {"webhook-id": value}, b"")


@pytest.mark.parametrize("url", ["http://e.example/%0d%0aX:%20y", "http://e.example/?a=%0d%0aX", "http://e.example/ä"])
def test_no_url_ends_its_line(url: str) -> None:
    head = Destination.of(httpx.URL(url)).head
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == 6
    assert head.startswith(b"POST /")


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (OK, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nretry-after: 5\r\n\r\n", True),
        (b"HTTP/1.1 103 Early Hints\r\nretry-after: 5\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK, True),
        (b"HTTP/1.1 200 OK\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        # Nothing of a second response is taken for the answer to the next request.
        (OK + b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", False),
        (OK + b"HTTP/1.1 50", False),
        (OK + b"nonsense", False),
    ],
)
async def test_connections_are_kept_after_one_complete_response(
    client: HttpClient, receiver: Receiver, answer: bytes, kept: bool
) -> None:
    receiver.answer = raw(answer)
    to = Destination.of(httpx.URL(receiver.url))
    for _ in range(2):
        assert (await client.post(to, {}, b"{}", timeout_s=5, answer_s=1)).status in (200, 204)
    assert receiver.connections == (1 if kept else 2)


async def test_a_body_that_ends_with_the_connection(client: HttpClient, receiver: Receiver) -> None:
    receiver.answer = raw(b"HTTP/1.1 200 OK\r\n\r\nthe body", keep=False)
    assert await post(client, receiver.url) == 200


@pytest.mark.parametrize(
    ("answer", "retry_after"),
    [
        (b"HTTP/1.1 503 Busy\r\nRetry-After:  90 \r\ncontent-length: 0\r\n\r\n", "90"),
        (b"HTTP/1.1 103 Hints\r\nretry-after: 5\r\n\r\nHTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", None),
        (b"HTTP/1.1 503 Busy\r\nretry-after: \xff\r\ncontent-length: 0\r\n\r\n", "\xff"),
    ],
)
async def test_retry_after_is_that_of_the_response(
    client: HttpClient, receiver: Receiver, answer: bytes, retry_after: str | None
) -> None:
    receiver.answer = raw(answer)
    to = Destination.of(httpx.URL(receiver.url))
    found = await client.post(to, {}, b"{}", timeout_s=5, answer_s=1)
    assert (found.status, (found.retry_after or "").strip() or None) == (503, retry_after)


@pytest.mark.parametrize(
    "part", [b"x-header: " + b"a" * 1000 + b"\r\n", b"a" * 4096, b"\r\n", b"\r\nHTTP/1.1 100 Continue\r\n"]
)
async def test_a_head_that_does_not_end_is_no_answer(client: HttpClient, receiver: Receiver, part: bytes) -> None:
    """Its parts are read up to a limit: neither memory nor the time of a try is used up."""

    async def endless(_request: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 100 Continue\r\n")
        while True:
            writer.write(part * (1 + 8192 // len(part)))
            await writer.drain()

    receiver.answer = endless
    with pytest.raises(BadAnswer):
        await post(client, receiver.url)
    await receiver.wait_closed(1)


async def test_a_receiver_that_sends_a_byte_at_a_time_has_one_limit_for_all(
    client: HttpClient, receiver: Receiver
) -> None:
    async def drip(_request: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    receiver.answer = drip
    with pytest.raises(TimeoutError):
        await client.post(Destination.of(httpx.URL(receiver.url)), {}, b"{}", timeout_s=0.2, answer_s=1)
    await receiver.wait_closed(1)


async def test_the_receiver_may_close_a_kept_connection_when_it_is_used_again(
    client: HttpClient, receiver: Receiver
) -> None:
    """That is no failure: the request is sent again, once, through a new connection."""
    served: set[asyncio.StreamWriter] = set()

    async def once(request: Received, writer: asyncio.StreamWriter) -> bool:
        if writer in served:
            return False
        served.add(writer)
        return await status(200)(request, writer)

    receiver.answer = once
    assert [await post(client, receiver.url) for _ in range(3)] == [200] * 3
    assert (len(receiver.requests), receiver.connections) == (5, 3)


async def test_a_new_connection_without_an_answer_is_a_failure(client: HttpClient, receiver: Receiver) -> None:
    async def silent(_request: Received, _writer: asyncio.StreamWriter) -> bool:
        return False

    receiver.answer = silent
    with pytest.raises(NoAnswer):
        await post(client, receiver.url)
    assert len(receiver.requests) == 1
    receiver.answer = raw(b"HTTP/1.1 200 OK\r\nx: ", keep=False)
    with pytest.raises(BadAnswer, match="closed"):
        await post(client, receiver.url)
    assert len(receiver.requests) == 2


async def test_a_connection_that_was_closed_while_it_was_idle_is_not_used(
    client: HttpClient, receiver: Receiver
) -> None:
    receiver.answer = raw(OK, keep=False)
    for count in (1, 2):
        assert await post(client, receiver.url) == 200
        await receiver.wait_closed(count)
    assert (len(receiver.requests), receiver.connections) == (2, 2)


async def test_idle_connections_are_closed(
    client: HttpClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "KEEP_ALIVE_S", 0.0)
    await post(client, receiver.url)
    await receiver.wait_closed(1)
    assert client._idle == {}
    assert client._idle_count == 0
    monkeypatch.setattr(http_client, "KEEP_ALIVE_S", 60.0)
    monkeypatch.setattr(http_client, "MAX_IDLE", 1)
    await asyncio.gather(*(post(client, receiver.url) for _ in range(3)))
    await receiver.wait_closed(3)
    assert client._idle_count == 1
    await client.aclose()
    await receiver.wait_closed(4)


async def test_a_connection_is_not_used_for_ever(
    client: HttpClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has moved to another address is followed."""
    monkeypatch.setattr(http_client, "MAX_AGE_S", 0.0)
    for _ in range(2):
        await post(client, receiver.url)
    assert receiver.connections == 2


async def test_a_refused_connection(client: HttpClient) -> None:
    async with receiving() as stopped:
        url = stopped.url
    with pytest.raises(httpcore.ConnectError):
        await post(client, url)
