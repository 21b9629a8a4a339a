"""One keep-alive connection: sends a request, times its answer, and says when it is whole."""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Callable
from time import perf_counter
from typing import cast

HEAD_END = b"\r\n\r\n"
# The end of a chunked body, behind the chunk before it.
LAST_CHUNK = b"\r\n0\r\n\r\n"
# The last frames with the usage fit in here.
TAIL = 4096
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
# Text that is not empty, in whichever of the streams' shapes.
_TEXT = re.compile(rb'"(?:content|text)": ?"(?!")')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_FAILED = re.compile(rb'"error": ?\{|event: job\.(?:failed|cancelled|expired)')


class Exchange:
    """A request and its answer. Times are `perf_counter` seconds; `first` is 0 where no text came."""

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
    """Answers are read in order; one request at a time. `done` is called with each exchange at its end."""

    def __init__(self, done: Callable[[Connection, Exchange], None], gaps: array[float]) -> None:
        self._done = done
        self._gaps = gaps
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._read = self._read_head
        self._seen = b""
        self._length = 0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def send(self, request: bytes, due: float | None = None) -> None:
        """Send a request; its times count from `due`, or from now."""
        assert self._transport is not None
        self._exchange = Exchange(due or perf_counter())
        self._read = self._read_head
        self._seen = b""
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
        seen = self._seen + data
        end = seen.find(HEAD_END)
        if end < 0:
            self._seen = seen
            return
        exchange = self._exchange
        assert exchange is not None
        head = seen[:end]
        exchange.status = int(head[9:12])
        self._seen = b""
        if _CHUNKED.search(head):
            self._read = self._read_until_text
            # The line break before the first chunk, so that an empty body ends as any other.
            self._read_until_text(seen[end + 2 :], now)
        else:
            length = _LENGTH.search(head)
            self._length = int(length[1]) if length else 0
            self._read = self._read_body
            self._read_body(seen[end + 4 :], now)

    def _read_body(self, data: bytes, now: float) -> None:
        self._seen += data
        if len(self._seen) >= self._length:
            assert self._exchange is not None
            self._exchange.body = self._seen
            self._end(now)

    def _read_until_text(self, data: bytes, now: float) -> None:
        self._seen += data
        assert self._exchange is not None
        self._exchange.last = now
        if _TEXT.search(self._seen):
            self._exchange.first = now
            self._read = self._read_on
        if self._seen.endswith(LAST_CHUNK):
            self._end(now)

    def _read_on(self, data: bytes, now: float) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._gaps.append(now - exchange.last)
        exchange.last = now
        self._seen = data if len(data) >= TAIL else self._seen[-TAIL:] + data
        if self._seen.endswith(LAST_CHUNK):
            self._end(now)

    def _end(self, now: float) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._exchange = None
        exchange.last = now
        seen, self._seen = self._seen, b""
        if counts := _TOKENS.findall(seen):
            exchange.tokens = int(counts[-1])
        if not exchange.failure and (exchange.status >= 400 or (not exchange.body and _FAILED.search(seen))):
            exchange.failure = f"{exchange.status} {seen[-300:].decode(errors='replace')}"
        self._done(self, exchange)
