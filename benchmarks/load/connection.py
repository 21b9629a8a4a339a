"""One keep-alive connection: sends requests and times the responses."""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Callable
from time import perf_counter
from typing import cast

HEAD_END = b"\r\n\r\n"
# The end of a chunked body, after the last chunk's data.
LAST_CHUNK = b"\r\n0\r\n\r\n"
# Enough bytes for the last frames, which include the usage.
TAIL = 4096
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
# Non-empty text, in any of the streaming formats.
_TEXT = re.compile(rb'"(?:content|text)": ?"(?!")')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_FAILED = re.compile(rb'"error": ?\{|event: job\.(?:failed|cancelled|expired)')


class Exchange:
    """A request and its response. Times are `perf_counter` seconds; `first` is 0 if there was no text."""

    __slots__ = ("body", "due", "failure", "first", "last", "status", "tokens")

    def __init__(self, due: float) -> None:
        self.due = due
        self.first = 0.0
        self.last = 0.0
        self.status = 0
        self.tokens = 0
        self.body = b""
        self.failure = ""


class Connection(asyncio.Protocol):
    """Handles one request at a time. `done` is called with each finished exchange."""

    def __init__(self, done: Callable[[Connection, Exchange], None], gaps: array[float]) -> None:
        self._done = done
        self._gaps = gaps
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._read = self._read_head
        self._buffer = b""
        self._length = 0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it

    def send(self, request: bytes, due: float | None = None) -> None:
        """Send a request, timed from `due` or from now."""
        assert self._transport is not None
        self._exchange = Exchange(due or perf_counter())
        self._read = self._read_head
        self._buffer = b""
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._read(data, perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.failure = f"the connection broke: {error or 'closed by the server'}"
            self._end(perf_counter())

    def _read_head(self, data: bytes, now: float) -> None:
        received = self._buffer + data
        end = received.find(HEAD_END)
        if end < 0:
            self._buffer = received
            return
        exchange = self._exchange
        assert exchange is not None
        head = received[:end]
        exchange.status = int(head[9:12])
        self._buffer = b""
        if _CHUNKED.search(head):
            self._read = self._read_until_text
            # Include the line break before the first chunk, so that LAST_CHUNK also matches an empty body.
            self._read_until_text(received[end + 2 :], now)
        else:
            length = _LENGTH.search(head)
            self._length = int(length[1]) if length else 0
            self._read = self._read_body
            self._read_body(received[end + 4 :], now)

    def _read_body(self, data: bytes, now: float) -> None:
        self._buffer += data
        if len(self._buffer) >= self._length:
            assert self._exchange is not None
            self._exchange.body = self._buffer
            self._end(now)

    def _read_until_text(self, data: bytes, now: float) -> None:
        self._buffer += data
        assert self._exchange is not None
        self._exchange.last = now
        if _TEXT.search(self._buffer):
            self._exchange.first = now
            self._read = self._read_after_text
        if self._buffer.endswith(LAST_CHUNK):
            self._end(now)

    def _read_after_text(self, data: bytes, now: float) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._gaps.append(now - exchange.last)
        exchange.last = now
        self._buffer = data if len(data) >= TAIL else self._buffer[-TAIL:] + data
        if self._buffer.endswith(LAST_CHUNK):
            self._end(now)

    def _end(self, now: float) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._exchange = None
        exchange.last = now
        received, self._buffer = self._buffer, b""
        if counts := _TOKENS.findall(received):
            exchange.tokens = int(counts[-1])
        if not exchange.failure and (exchange.status >= 400 or (not exchange.body and _FAILED.search(received))):
            exchange.failure = f"{exchange.status} {received[-300:].decode(errors='replace')}"
        self._done(self, exchange)
