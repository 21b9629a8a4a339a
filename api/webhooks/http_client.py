"""The HTTP/1.1 of webhooks: requests over guarded connections, which are kept for a while for the next delivery.

A general client takes several times as long for each request, for what webhooks do not have. This one sends POST
requests and reads what decides of a response: its status, and `Retry-After`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpcore
import httptools
import httpx

from shared.domain.version import VERSION

# The head of a response; and what is read of its body, so that the connection can be used again.
MAX_HEAD_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024
# How long a connection is kept for the next delivery to the same host: many servers close it after 5 s.
KEEP_ALIVE_S = 4.0
# How long a connection is used at most: a host that moves to another address must be followed.
MAX_AGE_S = 60.0
# Connections that are kept, of all hosts.
MAX_IDLE = 256
_READ_BYTES = 64 * 1024
_PORTS = {"http": 80, "https": 443}
_HEADERS = (
    f"User-Agent: Headrace/{VERSION}\r\nAccept: */*\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\n"
).encode()


class BadAnswer(Exception):
    """What the receiver has sent is not a response of HTTP."""


class NoAnswer(BadAnswer):
    """The connection was closed before the first byte of a response."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What decides of a response. `retry_after`: the value of its header."""

    status: int
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL as requests need it. `head`: the first lines of each request."""

    scheme: str
    host: str
    port: int
    head: bytes

    @classmethod
    def of(cls, url: httpx.URL) -> Destination:
        """The destination of a URL.

        Raises:
            ValueError: it is not one of HTTP, or has no host.
        """
        if url.scheme not in _PORTS or not url.raw_host:
            raise ValueError("not a URL of HTTP")
        port = _PORTS[url.scheme] if url.port is None else url.port
        # Both are percent-encoded or IDNA, so neither can end its line.
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\n%b" % (url.raw_path, url.netloc, _HEADERS)
        return cls(url.scheme, url.raw_host.decode("ascii"), port, head)


class _Connection:
    """An HTTP/1.1 connection, with one request at a time. The parser calls the methods `on_...`."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._parser = httptools.HttpResponseParser(self)
        self._opened = time.monotonic()
        self.expiry: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._received = 0
        self._status = 0
        self._retry_after: str | None = None
        self._has_head = self._is_complete = self._is_kept = False

    async def request(self, data: bytes) -> Answer:
        """Send a request and wait for the head of its response.

        Raises:
            BadAnswer, httpcore.NetworkError: there is none.
        """
        self._begin()
        # A receiver may answer and close without reading all.
        with suppress(httpcore.WriteError):
            await self._stream.write(data)
        while not self._has_head:
            if self._received > MAX_HEAD_BYTES:
                raise BadAnswer("the head is too long")
            try:
                received = await self._stream.read(_READ_BYTES)
            except httpcore.ReadError as error:
                if self._received:
                    raise
                raise NoAnswer("the connection was broken off") from error
            if not received:
                raise (BadAnswer if self._received else NoAnswer)("the connection was closed")
            self._feed(received)
        return Answer(self._status, self._retry_after)

    async def discard(self) -> bool:
        """Read the body, if it is short. Returns whether the connection can be used again."""
        while not self._is_complete:
            if self._received > MAX_ANSWER_BYTES or not (received := await self._stream.read(_READ_BYTES)):
                return False
            self._feed(received)
        return self._is_kept and time.monotonic() - self._opened < MAX_AGE_S

    def is_open(self) -> bool:
        """Whether the receiver has neither closed it while it was idle, nor sent anything unasked."""
        return not self._stream.get_extra_info("is_readable")

    async def aclose(self) -> None:
        """Close it."""
        with suppress(httpcore.NetworkError, OSError):
            await self._stream.aclose()

    def _feed(self, received: bytes) -> None:
        self._received += len(received)
        try:
            self._parser.feed_data(received)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._has_head:
                raise BadAnswer("not HTTP") from error
            # The status is known, and decides.
            self._is_complete, self._is_kept = True, False

    def on_message_begin(self) -> None:
        """A response begins."""
        if self._has_head:  # a second one, to no request
            self._is_kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if not self._has_head and name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The end of a head."""
        status = self._parser.get_status_code()
        if self._has_head:
            return
        if status < 200:  # an interim response, which another one follows
            self._retry_after = None
            return
        self._status, self._has_head = status, True
        self._is_kept = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        """The end of a response."""
        self._is_complete = self._has_head


class HttpClient:
    """Sends requests through a network backend, which decides what may be connected to.

    It follows no redirect, keeps no cookies, and knows no proxies or credentials of the environment.
    """

    def __init__(self, backend: httpcore.AsyncNetworkBackend, tls: ssl.SSLContext) -> None:
        self._backend = backend
        self._tls = tls
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}
        self._idle_count = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def post(
        self, to: Destination, headers: Mapping[str, str], body: bytes, *, timeout_s: float, answer_s: float
    ) -> Answer:
        """Send a request. `timeout_s`: for all of it until the response's headers; `answer_s`: for the body.

        Raises:
            TimeoutError, BadAnswer, httpcore.NetworkError: there was no answer.
            SSRFProtectionError: the address is refused; nothing was sent.
        """
        request = _request(to, headers, body)
        # One limit for all steps: one for each would let a receiver delay each step anew.
        async with asyncio.timeout(timeout_s):
            connection, answer = await self._send(to, request)
        try:
            async with asyncio.timeout(answer_s):
                is_kept = await connection.discard()
        except (TimeoutError, httpcore.NetworkError):
            is_kept = False
        except BaseException:
            await connection.aclose()
            raise
        if is_kept and self._idle_count < MAX_IDLE:
            self._keep(to, connection)
        else:
            await connection.aclose()
        return answer

    async def _send(self, to: Destination, request: bytes) -> tuple[_Connection, Answer]:
        if (kept := self._take(to)) is not None:
            # A receiver may close an idle connection at the very moment when it is used again. That is no failure of
            # the receiver; and if it has read the request nevertheless, it recognizes the repetition by its id.
            with suppress(NoAnswer):
                return kept, await _requested(kept, request)
        connection = await self._connect(to)
        return connection, await _requested(connection, request)

    async def _connect(self, to: Destination) -> _Connection:
        stream = await self._backend.connect_tcp(to.host, to.port)
        if to.scheme == "https":
            # It closes the connection if it fails. The certificate must be that of the host, not of the address.
            stream = await stream.start_tls(self._tls, server_hostname=to.host)
        return _Connection(stream)

    def _take(self, to: Destination) -> _Connection | None:
        """The connection that was used last, of those that are kept to this host."""
        key = to.scheme, to.host, to.port
        while kept := self._idle.get(key):
            connection = kept[-1]
            self._forget(key, connection)
            if connection.is_open():
                return connection
            self._close(connection)
        return None

    def _keep(self, to: Destination, connection: _Connection) -> None:
        key = to.scheme, to.host, to.port
        self._idle.setdefault(key, []).append(connection)
        self._idle_count += 1
        connection.expiry = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._expire, key, connection)

    def _expire(self, key: tuple[str, str, int], connection: _Connection) -> None:
        self._forget(key, connection)
        self._close(connection)

    def _forget(self, key: tuple[str, str, int], connection: _Connection) -> None:
        kept = self._idle[key]
        kept.remove(connection)
        if not kept:
            del self._idle[key]
        self._idle_count -= 1
        if connection.expiry is not None:
            connection.expiry.cancel()

    def _close(self, connection: _Connection) -> None:
        closing: Coroutine[Any, Any, None] = connection.aclose()
        task = asyncio.create_task(closing, name="webhook-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        for key, kept in list(self._idle.items()):
            for connection in list(kept):
                self._expire(key, connection)
        await asyncio.gather(*self._closing)


async def _requested(connection: _Connection, request: bytes) -> Answer:
    try:
        return await connection.request(request)
    except BaseException:
        await connection.aclose()
        raise


def _request(to: Destination, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = []
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the header {name} has a value that is not printable ASCII")
        lines.append(f"{name}: {value}\r\n")
    lines.append(f"Content-Length: {len(body)}\r\n\r\n")
    return b"".join((to.head, "".join(lines).encode(), body))
