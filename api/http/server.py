"""The HTTP server: uvicorn's httptools protocol, with limits on what a client can cost before it is authenticated.

uvicorn bounds neither the size of a request's head nor the time in which a client sends a request. This subclass limits
both, and the number of connections, so that a client without a key can hold neither memory nor sockets. Timeouts are
checked by one sweep over all connections, not by a timer for each request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import resource
from collections import Counter
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.http.transport import ClientTransport
from api.settings import HttpSettings
from shared.telemetry.definitions.labels import HttpRejection
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_HEADERS = 128
# Requests that a client may send ahead of the responses, on one connection.
MAX_PIPELINED = 16
# The framing of a chunked body may have this many bytes per byte of content, and an allowance.
MAX_FRAMING, FRAMING_ALLOWANCE = 8, 64 * 1024
# After a response that was sent before its request was read, the rest of the request is discarded: closing a socket
# with unread data would reset the connection, and the client might lose the response.
LINGER_S, LINGER_BYTES = 3.0, 16 * 1024 * 1024
SWEEP_S = 1.0
_BODY_FRAMING = (b"content-length", b"transfer-encoding")
_HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+,;=:\[\]]*")


class _Rejected(Exception):
    """The request exceeds a limit."""

    def __init__(self, status: int, reason: HttpRejection, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class _Phase(Enum):
    """What a connection receives."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    NOTHING = auto()  # what arrives is discarded


_BODY = _Phase.BODY


class Server(uvicorn.Server):
    """Cancels the requests that have not ended `grace_s` seconds after SIGTERM.

    uvicorn does so too, but reports it as an error.
    """

    def __init__(self, config: uvicorn.Config, grace_s: float) -> None:
        super().__init__(config)
        self._grace_s = grace_s

    async def _wait_tasks_to_complete(self) -> None:
        try:
            async with asyncio.timeout(self._grace_s):
                await super()._wait_tasks_to_complete()
        except TimeoutError:
            unfinished = list(self.server_state.tasks)
            logger.info("%d requests did not end within %g s and are cancelled", len(unfinished), self._grace_s)
            for task in unfinished:
                task.cancel()


class Connections:
    """The client connections of this process, and their limits."""

    def __init__(self, settings: HttpSettings, send_timeout_s: float, metrics: Metrics, *, reserved_files: int) -> None:
        """`reserved_files`: the files and sockets that the process needs besides its clients' connections."""
        self.settings = settings
        self._send_timeout_s = send_timeout_s
        self._metrics = metrics
        self.limit = _connection_limit(settings.max_connections, reserved_files)
        self._open: set[LimitedProtocol] = set()
        # Connections on which no request is being answered, the one that has waited longest first.
        self._waiting: dict[LimitedProtocol, None] = {}
        self._by_address: Counter[str] = Counter()
        self._interval_s = min(SWEEP_S, settings.header_timeout_s / 4, settings.body_timeout_s / 4)
        self._sweep: asyncio.TimerHandle | None = None

    def protocol(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> LimitedProtocol:
        """Create the protocol of a new connection, as uvicorn's class does."""
        return LimitedProtocol(self, config, server_state, app_state, _loop)

    def opened(self, connection: LimitedProtocol) -> bool:
        """Register a connection. False if there are too many, and none can be closed in its favor."""
        self._open.add(connection)
        self._waiting[connection] = None
        self._by_address[connection.address] += 1
        self._metrics.http_connections.inc()
        if self._sweep is None:
            self._sweep = connection.loop.call_later(self._interval_s, self._check, connection.loop)
        per_address = self.settings.max_connections_per_address
        if per_address and self._by_address[connection.address] > per_address:
            return False
        if len(self._open) <= self.limit:
            return True
        oldest = next(iter(self._waiting))
        if oldest is connection:
            return False
        self.rejected(HttpRejection.CONNECTIONS)
        self.closed(oldest)
        oldest.evict()
        return True

    def closed(self, connection: LimitedProtocol) -> None:
        """Remove a connection."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        self._metrics.http_connections.dec()
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]

    def busy(self, connection: LimitedProtocol) -> None:
        """A request is being answered on the connection."""
        self._waiting.pop(connection, None)

    def waits(self, connection: LimitedProtocol) -> None:
        """The connection's last request has been answered."""
        if connection in self._open:
            self._waiting[connection] = None

    def rejected(self, reason: HttpRejection) -> None:
        """Count a rejection."""
        self._metrics.http_rejections.labels(reason.value).inc()

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.check(now, self._interval_s, self._send_timeout_s)
        self._sweep = loop.call_later(self._interval_s, self._check, loop) if self._open else None


class LimitedProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, connections: Connections, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.address = ""
        self._connections = connections
        self._settings = connections.settings
        self._phase = _Phase.IDLE
        # Since when the connection has been in its phase, on the loop's clock. Not kept up to date between requests.
        self._since = self.loop.time()
        self._served = False
        self._head_bytes = self._header_count = self._hosts = 0
        self._body_bytes = self._body_raw_bytes = 0
        self._body_wait_s = 0.0
        self._keep_alive = False
        self._rejection: _Rejected | None = None
        self._unsent = 0
        self._unsent_s = 0.0

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = ClientTransport(cast(asyncio.Transport, transport), self)
        super().connection_made(cast(asyncio.Transport, self._client))
        self.address = self.client[0] if self.client else ""
        if not self._connections.opened(self):
            self._connections.rejected(HttpRejection.CONNECTIONS)
            self.transport.write(_error(503, "The server has too many connections; try again."))
            self.transport.close()
            self._phase = _Phase.NOTHING

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self)
        super().connection_lost(exc)

    def eof_received(self) -> None:
        if self._phase is _Phase.NOTHING:
            self.transport.abort()

    def evict(self) -> None:
        """Close the connection, on which no request is being answered, in favor of another."""
        self._phase = _Phase.NOTHING
        self.transport.abort()

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()

    def linger(self) -> None:
        """Discard the rest of the request for a while, then close the connection."""
        self._phase, self._since, self._body_raw_bytes = _Phase.NOTHING, self.loop.time(), 0
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    @property
    def request_is_incomplete(self) -> bool:
        return self._phase is not _Phase.IDLE

    def check(self, now: float, interval_s: float, send_timeout_s: float) -> None:
        """Enforce the timeouts. Called every `interval_s` seconds."""
        match self._phase:
            case _Phase.NOTHING:
                if now - self._since > LINGER_S and not self._answering:
                    self.transport.abort()
                    return
            case _Phase.IDLE:
                if not self._served and not self._answering and now - self._since > self._settings.header_timeout_s:
                    self._connections.rejected(HttpRejection.HEADER_TIMEOUT)
                    self.transport.close()
            case _Phase.HEAD:
                if self.flow.read_paused:
                    self._since += interval_s
                elif now - self._since > self._settings.header_timeout_s:
                    self._refuse(408, HttpRejection.HEADER_TIMEOUT, "The request's headers took too long to arrive.")
            case _Phase.BODY:
                # While reading is paused, the client waits for the application.
                self._body_wait_s += 0.0 if self.flow.read_paused else interval_s
                allowed_s = self._settings.body_timeout_s + self._body_bytes / self._settings.min_body_rate
                if self._body_wait_s > allowed_s:
                    self._refuse(408, HttpRejection.BODY_TIMEOUT, "The request's body took too long to arrive.")
        # A client that does not read: streams have a timeout of their own, which comes first.
        unsent = self.transport.get_write_buffer_size()
        self._unsent_s = self._unsent_s + interval_s if unsent and unsent >= self._unsent else 0.0
        self._unsent = unsent
        if self._unsent_s > 2 * send_timeout_s:
            self._connections.rejected(HttpRejection.SEND_TIMEOUT)
            self.transport.abort()

    # Parsing

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.NOTHING:
            self._body_raw_bytes += len(data)
            if self._body_raw_bytes > LINGER_BYTES and not self._answering:
                self.transport.abort()
            return
        before = self._phase
        if before is _Phase.IDLE:
            self._unset_keepalive_if_required()
            self._phase, self._since, self._head_bytes = _Phase.HEAD, self.loop.time(), 0
        try:
            self.parser.feed_data(data)
            # A header that began in an earlier read is counted by its bytes, because its callback may never come.
            if before is _Phase.HEAD and self._phase is _Phase.HEAD:
                self._count_head(len(data))
            elif before is _Phase.BODY and self._phase is _Phase.BODY:
                self._check_framing(len(data))
        except _Rejected as rejected:
            self._refuse(rejected.status, rejected.reason, str(rejected))
        except httptools.HttpParserUpgrade as upgrade:
            # No protocol is offered; the request is answered as an ordinary one, and is the last.
            if self._phase is _BODY:
                self._read_body_of_upgrade(data[upgrade.args[0] :])
            else:
                self.last_request()
        except httptools.HttpParserError:
            if (rejection := self._rejection) is not None:
                self._refuse(rejection.status, rejection.reason, str(rejection))
            else:
                self._refuse(400, HttpRejection.MALFORMED, "The request is not valid HTTP/1.1.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self._head_bytes = self._header_count = self._hosts = 0

    def on_url(self, url: bytes) -> None:
        limit = self._settings.max_header_bytes
        if len(self.url) + len(url) > limit:
            self._reject(414, HttpRejection.TOO_LARGE, f"The request's URL is longer than {limit} bytes.")
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        self._header_count += 1
        if self._header_count > MAX_HEADERS:
            self._reject(431, HttpRejection.TOO_LARGE, f"The request has more than {MAX_HEADERS} headers.")
        if self._phase is _BODY:
            return  # a trailer must not become a header of the request
        name = name.lower()
        if name == b"host":
            self._hosts += 1
            if not _HOST.fullmatch(value):
                self._reject(400, HttpRejection.MALFORMED, "The Host header is not valid.")
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._hosts > 1 or (not self._hosts and self.parser.get_http_version() == "1.1"):
            self._reject(400, HttpRejection.MALFORMED, "The request must have one Host header.")
        if len(self.pipeline) >= MAX_PIPELINED:
            self._reject(400, HttpRejection.PIPELINING, "The client has sent too many requests ahead.")
        previous = self.cycle
        self.scope["state"]["disconnect"] = self.transport.abort
        self._client.expect_head()
        super().on_headers_complete()
        self._connections.busy(self)
        self._unset_keepalive_if_required()
        self._served = True
        self._phase = _Phase.BODY
        self._head_bytes = self._body_bytes = self._body_raw_bytes = 0
        self._body_wait_s = 0.0
        if self.cycle is not previous:
            if self.parser.get_http_version() == "1.0":
                self.cycle.__class__ = _UnframedCycle
            # A response that starts before the request was read ends the connection; see `on_message_complete`.
            self._keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._body_framing():
            return  # the parser skips the bodies of such requests; see `_read_body_of_upgrade`
        super().on_message_complete()
        self._phase = _Phase.IDLE
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering:
            self._connections.waits(self)

    # Limits

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._settings.max_header_bytes:
            limit = self._settings.max_header_bytes
            self._reject(431, HttpRejection.TOO_LARGE, f"The request's headers are larger than {limit} bytes.")

    def _check_framing(self, size: int) -> None:
        """Limit what a chunked body has besides its content: tiny chunks, and extensions of chunks."""
        self._body_raw_bytes += size
        if self._body_raw_bytes > self._body_bytes * (MAX_FRAMING + 1) + FRAMING_ALLOWANCE:
            self._reject(400, HttpRejection.MALFORMED, "The body's chunks are too small.")

    def _reject(self, status: int, reason: HttpRejection, message: str) -> None:
        # The parser replaces an exception of a callback by its own.
        self._rejection = _Rejected(status, reason, message)
        raise self._rejection

    def _body_framing(self) -> list[tuple[bytes, bytes]]:
        """The headers that say how long the request's body is."""
        return [header for header in self.headers if header[0] in _BODY_FRAMING]

    def _read_body_of_upgrade(self, data: bytes) -> None:
        """Read the body of a request that offers to upgrade, as Java's HTTP client does with each first request.

        httptools skips such a body. Another parser reads it, after a head with the same framing.
        """
        framing = b"".join(b"%b: %b\r\n" % header for header in self._body_framing())
        self.parser = httptools.HttpRequestParser(_BodyReader(self))
        self.data_received(b"POST / HTTP/1.1\r\n%b\r\n%b" % (framing, data))

    def last_request(self) -> None:
        """Discard what else arrives, and close the connection after the response to the last request."""
        self._phase, self._since, self._body_raw_bytes = _Phase.NOTHING, self.loop.time(), 0
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse(self, status: int, reason: HttpRejection, message: str) -> None:
        """Answer with an error instead of the application, and close the connection."""
        self._connections.rejected(reason)
        logger.debug("request rejected: %s", message)
        answering = self._answering
        if answering and self._phase is not _Phase.BODY:
            self.last_request()  # a request that the client sent ahead: the earlier ones get their responses
            return
        if answering and (self.cycle.response_started or self.pipeline):
            self.transport.abort()
            return
        self._phase = _Phase.BODY  # so that closing lingers
        self.transport.write(_error(status, message))
        if answering:
            self.cycle.disconnected = True
            self.cycle.response_complete = True
            self.cycle.message_event.set()
        self.transport.close()


class _BodyReader:
    """Passes the body of a connection's last request on, but not its head."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol
        self.on_body = protocol.on_body

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()
        self._protocol.last_request()


class _UnframedCycle(RequestResponseCycle):
    """A response to an HTTP/1.0 client, which does not know chunks: the end of the connection ends the body."""

    async def send(self, message: Any) -> None:
        self.chunked_encoding = False
        self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


def _error(status: int, message: str) -> bytes:
    """A response with OpenAI's error body."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def _connection_limit(wanted: int, reserved: int) -> int:
    """The number of clients' connections that the process may have, of those wanted.

    Raises the process's limit of open files if it is too low, as far as that is allowed. `reserved`: the files that
    the process needs for other purposes.
    """
    needed = wanted + reserved
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = max(1, soft - reserved)
    if allowed < wanted:
        logger.warning(
            "at most %d connections, because the process may open only %d files, of which it reserves %d for others",
            allowed, soft, reserved,
        )  # fmt: skip
    return min(wanted, allowed)
