"""Clients without a key: what they send is neither buffered nor parsed, and costs other clients nothing.

Requests are written to raw sockets, because HTTP libraries do not send what an attacker sends. A client with a key runs
beside each attack; the memory of the API process must not grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.database import drop_database
from tests.support.metrics import samples
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

# Memory that one attack may leave or use, above what the process used before.
GROWTH_BYTES = 24 * 1024 * 1024
AUTHORIZATION = f"Authorization: Bearer {KEY}\r\n".encode()
HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API process with short timeouts and few connections."""
    models: list[dict[str, object]] = [{"name": "sim", "engine": "simulated", "slots": 2}]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "hostile",
        models,
        HEADRACE_HEADER_TIMEOUT_S=2,
        HEADRACE_BODY_TIMEOUT_S=1,
        HEADRACE_KEEP_ALIVE_S=5,
        HEADRACE_MAX_CONNECTIONS=300,
    )
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_hostile")


class Bystander:
    """Calls the API on one connection for as long as an attack lasts."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._process = psutil.Process(stack.processes["api"].pid)
        self.responses = 0
        self.slowest_s = 0.0
        self.most_bytes = 0

    def memory(self) -> int:
        return int(self._process.memory_info().rss)

    async def run(self) -> None:
        async with self._stack.client() as client:
            while True:
                started = time.monotonic()
                response = await client.get("/v1/models")
                assert response.status_code == 200
                self.responses += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                self.most_bytes = max(self.most_bytes, self.memory())
                await asyncio.sleep(0.02)


@pytest.fixture
async def bystander(stack: Stack) -> AsyncIterator[Bystander]:
    """Checks, after the test, that another client was served all the time and that memory did not grow."""
    async with stack.client() as client:
        for _ in range(20):
            await client.get("/v1/models")
    bystander = Bystander(stack)
    before = bystander.memory()
    running = asyncio.create_task(bystander.run())
    yield bystander
    responses = bystander.responses

    async def goes_on() -> bool:
        return running.done() or bystander.responses > responses

    await eventually(goes_on, "the bystander is served")
    assert not running.done(), running.exception()
    running.cancel()
    assert bystander.most_bytes - before < GROWTH_BYTES
    assert bystander.slowest_s < 2, "the API stood still"
    assert "Traceback" not in (stack.folder / "api.log").read_text()


class Socket:
    """A raw connection to the API."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, stack: Stack) -> Socket:
        return cls(*await asyncio.open_connection("127.0.0.1", stack.port))

    async def send(self, data: bytes) -> None:
        """Send data, unless the server has closed the connection."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def read(self, within_s: float = 20) -> bytes:
        """Read until the server closes the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(within_s):
                while data := await self._reader.read(65536):
                    received += data
        return received

    async def response(self, within_s: float = 20) -> tuple[int, dict[str, str], bytes]:
        """Read one response with a Content-Length."""
        async with asyncio.timeout(within_s):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, body

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def sockets(stack: Stack) -> AsyncIterator[Any]:
    opened: list[Socket] = []

    async def connect() -> Socket:
        opened.append(await Socket.open(stack))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


def status_of(received: bytes) -> int:
    """The status of the first response; 0 if there is none."""
    return int(received.split(b" ", 2)[1]) if received.startswith(b"HTTP/1.1 ") else 0


async def rejections(stack: Stack, reason: str) -> float:
    return (await samples(stack, "api")).get(("headrace_http_rejections_total", reason), 0.0)


async def flood(socket: Socket, start: bytes, piece: bytes, count: int) -> bytes:
    """Send `start`, then up to `count` pieces, until the server closes the connection; return what it has sent."""
    reading = asyncio.create_task(socket.read(60))
    await socket.send(start)
    for _ in range(count):
        if reading.done():
            break
        await socket.send(piece)
        await asyncio.sleep(0)
    socket._writer.write_eof() if not reading.done() else None
    return await reading


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    ("start", "piece", "status"),
    [
        (HEAD + b"X-Large: ", b"x" * 65536, 431),
        (HEAD, b"".join(b"x-%d: y\r\n" % number for number in range(4000)), 431),
        (b"GET /", b"x" * 65536, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n ", b" " * 65536, 400),
        (b"", b"\r\n" * 32768, 431),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536, 401),
        (HEAD + b"Content-Length: 134217728\r\n\r\n", b"{}" * 32768, 401),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\n{}\r\n" * 8192, 401),
    ],
    ids=["a header", "many headers", "a URL", "a folded line", "blank lines", "a chunk extension", "a body", "chunks"],
)
async def test_128_mb_without_a_key_are_not_buffered(sockets: Any, start: bytes, piece: bytes, status: int) -> None:
    received = await flood(await sockets(), start, piece, 2048)
    assert status_of(received) in (status, 0), received[:200]  # 0: the flood overtook the response


@pytest.mark.usefixtures("bystander")
async def test_250_idle_connections_end(stack: Stack, sockets: Any) -> None:
    before = await rejections(stack, "header_timeout")
    idle = [await sockets() for _ in range(250)]
    assert all(not received for received in await asyncio.gather(*(socket.read() for socket in idle)))
    assert await rejections(stack, "header_timeout") - before == 250


@pytest.mark.usefixtures("bystander")
async def test_slow_headers_time_out(stack: Stack, sockets: Any) -> None:
    async def drip(socket: Socket) -> bytes:
        reading = asyncio.create_task(socket.read())
        await socket.send(HEAD)
        while not reading.done():
            await socket.send(b"x")
            await asyncio.sleep(0.3)
        return await reading

    slow = [await sockets() for _ in range(50)]
    answers = await asyncio.gather(*(drip(socket) for socket in slow))
    assert {status_of(answer) for answer in answers} == {408}


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
async def test_unfinished_bodies_time_out(stack: Stack, sockets: Any, framing: bytes) -> None:
    with_key, without = await sockets(), await sockets()
    await with_key.send(HEAD + AUTHORIZATION + framing)
    await without.send(HEAD + framing)
    status, headers, _ = await without.response(1)
    assert (status, headers["connection"]) == (401, "close"), "without a key, the body is not awaited"
    assert status_of(await with_key.read()) == 408


@pytest.mark.usefixtures("bystander")
async def test_a_body_that_arrives_slowly_enough_is_complete(stack: Stack, sockets: Any) -> None:
    socket = await sockets()
    await socket.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"Content-Length: 3\r\n\r\n")
    for _ in range(3):
        await asyncio.sleep(0.2)
        await socket.send(b" ")
    assert (await socket.response())[0] == 200


@pytest.mark.usefixtures("bystander")
async def test_100_continue_is_sent_only_with_a_key(sockets: Any) -> None:
    expecting = b"Expect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    without, with_key = await sockets(), await sockets()
    await without.send(HEAD + expecting)
    assert (await without.response())[0] == 401
    await with_key.send(HEAD + AUTHORIZATION + expecting)
    assert (await with_key.response())[0] == 100
    await with_key.send(b"{}")
    assert (await with_key.response())[0] == 400


@pytest.mark.usefixtures("bystander")
async def test_a_rejection_of_a_complete_request_keeps_the_connection(sockets: Any) -> None:
    socket = await sockets()
    for _ in range(3):
        await socket.send(HEAD + b"Content-Length: 2\r\n\r\n{}")
        status, headers, body = await socket.response()
        assert status == 401
        assert "connection" not in headers
        assert b"invalid_api_key" in body


@pytest.mark.usefixtures("bystander")
async def test_a_client_that_sends_its_body_late_receives_its_rejection(sockets: Any) -> None:
    """As most clients do: headers first, then the body, then they read. The connection must not be reset."""
    socket = await sockets()
    await socket.send(HEAD + b"Content-Length: 1000000\r\n\r\n")
    await asyncio.sleep(0.3)  # the response has been sent
    await socket.send(b" " * 1_000_000)
    received = await socket.read()
    assert status_of(received) == 401
    assert b"invalid_api_key" in received


@pytest.mark.usefixtures("bystander")
async def test_pipelined_requests_are_answered_in_order_and_limited(stack: Stack, sockets: Any) -> None:
    request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n"
    socket = await sockets()
    await socket.send(request * 5)
    for _ in range(5):
        assert (await socket.response())[0] == 200
    before = await rejections(stack, "pipelining")
    await socket.send(request * 1000)
    received = await socket.read()
    assert 1 <= received.count(b"HTTP/1.1 200 OK") < 100
    assert await rejections(stack, "pipelining") - before == 1


@pytest.mark.usefixtures("bystander")
async def test_trailers_are_not_headers(sockets: Any) -> None:
    socket = await sockets()
    await socket.send(
        HEAD + AUTHORIZATION + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        b"X-Request-Id: from-a-trailer\r\n\r\n"
    )
    status, headers, _ = await socket.response()
    assert status == 400
    assert headers["x-request-id"] != "from-a-trailer"


@pytest.mark.usefixtures("bystander")
async def test_upgrades_are_answered_as_ordinary_requests(sockets: Any) -> None:
    for protocol in (b"websocket", b"h2c"):
        socket = await sockets()
        await socket.send(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
        )
        received = await socket.read()
        assert status_of(received) == 200
        assert b"connection: close" in received


async def test_connections_beyond_the_limit_replace_idle_ones(stack: Stack, sockets: Any) -> None:
    """320 connections that have sent nothing do not keep a client out, though the limit is 300."""
    before = await rejections(stack, "connections")
    for _ in range(320):
        await sockets()
    async with stack.client() as client:
        assert (await client.get("/v1/models")).status_code == 200
    assert await rejections(stack, "connections") - before >= 20


async def test_failed_authentication_is_counted(stack: Stack) -> None:
    before = await samples(stack, "api")
    async with httpx.AsyncClient(base_url=stack.url) as client:
        assert (await client.get("/v1/models")).status_code == 401
        for number in range(5):
            guess = {"Authorization": f"Bearer hr_guess_{number}"}
            assert (await client.get("/v1/models", headers=guess)).status_code == 401
    after = await samples(stack, "api")

    def failures(reason: str) -> float:
        name = ("headrace_auth_failures_total", reason)
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert (failures("missing"), failures("invalid")) == (1, 5)
