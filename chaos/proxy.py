"""A TCP proxy that can reset connections, refuse new ones, and stall all traffic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast


class FaultProxy:
    """Listens on 127.0.0.1 and forwards to a Unix socket or a local port."""

    def __init__(self, upstream: Path | int) -> None:
        self._upstream = upstream
        self._ends: set[_End] = set()
        self._server: asyncio.Server | None = None
        self.refusing = False
        self.stalled = False
        self.port = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> int:
        """Reset every open connection. Returns the number of ends, two per connection."""
        ends = list(self._ends)
        for end in ends:
            end.abort()
        return len(ends)

    def refuse(self, refusing: bool) -> None:
        """While `refusing`, reset open and new connections."""
        self.refusing = refusing
        if refusing:
            self.cut()

    def stall(self, stalled: bool) -> None:
        """While `stalled`, hold back all bytes, including those of new connections. None are lost."""
        self.stalled = stalled
        for end in self._ends:
            end.pause("stalled", stalled)

    def register(self, end: _End) -> None:
        self._ends.add(end)
        if self.stalled:
            end.pause("stalled", True)

    def unregister(self, end: _End) -> None:
        self._ends.discard(end)

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self._upstream, Path):
            await loop.create_unix_connection(protocol, str(self._upstream))
        else:
            await loop.create_connection(protocol, "127.0.0.1", self._upstream)


class _End(asyncio.Protocol):
    """One end of a forwarded connection. Reading is paused while `_reasons` is not empty."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._reasons: set[str] = set()
        self._held = b""
        self.peer: _End | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._proxy.register(self)

    def data_received(self, data: bytes) -> None:
        if self._reasons:  # uvloop starts reading after `connection_made`, even if paused there
            self._held += data
            self._sync()
        elif self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._proxy.unregister(self)
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause("full", True)

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause("full", False)

    def pause(self, reason: str, paused: bool) -> None:
        """Add or remove a reason to pause reading."""
        (self._reasons.add if paused else self._reasons.discard)(reason)
        if self._held and not self._reasons:
            data, self._held = self._held, b""
            self.data_received(data)
        self._sync()

    def _sync(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._reasons and self.transport.is_reading():
            self.transport.pause_reading()
        elif not self._reasons and not self.transport.is_reading():
            self.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Client(_End):
    """The end that a client opened; opens the upstream end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._proxy.refusing:
            self.abort()
            return
        self.pause("connecting", True)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        upstream = _End(self._proxy)
        upstream.peer = self
        try:
            await self._proxy.connect(lambda: upstream)
        except OSError:
            self.abort()
            return
        if self.transport is None or self.transport.is_closing():
            upstream.abort()
            return
        self.peer = upstream
        self.pause("connecting", False)
