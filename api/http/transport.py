"""The transport of a client's connection: writes a response in one packet, and closes without losing it."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Lingering(Protocol):
    """A protocol that discards the rest of a request before its connection is closed."""

    @property
    def request_is_incomplete(self) -> bool: ...

    def linger(self) -> None: ...


class ClientTransport:
    """The transport of a connection. Closing it while a request is incomplete lingers; see `LimitedProtocol.linger`.

    uvicorn writes the head of a response and its body separately. Each write is a system call that also wakes the
    client up, and costs more than the encoding of a small response. So a head waits for the body until the end of the
    event loop's step.
    """

    def __init__(self, transport: asyncio.Transport, protocol: Lingering) -> None:
        self._transport = transport
        self._protocol = protocol
        self._lingers = False
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._head_is_due: asyncio.Handle | None = None
        # Without a further call for each write.
        self.write = transport.write
        self.abort = transport.abort
        self.can_write_eof = transport.can_write_eof
        self.write_eof = transport.write_eof
        self.get_extra_info = transport.get_extra_info
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def expect_head(self) -> None:
        """Write what comes next together with what follows it in the same step of the event loop."""
        if self._head_is_due is None:
            self.write = self._write_head

    def _write_head(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._head = bytes(data)
        self._head_is_due = self._loop.call_soon(self._send_head)
        self.write = self._write_body

    def _write_body(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._send_head(data)

    def _send_head(self, body: bytes | bytearray | memoryview[Any] = b"") -> None:
        if self._head_is_due is None:
            return
        self._head_is_due.cancel()
        self._head_is_due = None
        self.write = self._transport.write
        if not self._transport.is_closing():
            self._transport.write(self._head + body)

    def close(self) -> None:
        if self._lingers or self._transport.is_closing():
            return
        self._send_head()
        if self._protocol.request_is_incomplete:
            self._lingers = True
            self._protocol.linger()
        else:
            self._transport.close()

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()
