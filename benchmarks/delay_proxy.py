"""A TCP proxy that delays all bytes, for servers that are not on the same machine.

    python -m benchmarks.delay_proxy --delay-ms 0.5 --to 6379 --to /path/to/.s.PGSQL.5432

Each direction is delayed, so that a round trip takes twice the delay longer. One listener for each `--to`, a local port
or a Unix socket; their ports are printed in the same order. The event loop waits by `select`, whose timeouts are exact
to some ten microseconds; those of epoll, and so of uvloop, are whole milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import selectors
from collections import deque
from functools import partial
from typing import cast

# Bytes of a connection that are on their way, beyond which its sender waits.
MAX_BUFFERED = 1 << 20


class _End(asyncio.Protocol):
    """One end of a connection; what it receives is written to its peer after the delay."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._on_the_way: deque[bytes] = deque()
        self._buffered = 0
        self._transport: asyncio.Transport | None = None
        self.peer: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._on_the_way.append(data)
        self._buffered += len(data)
        if self._buffered > MAX_BUFFERED and self._transport is not None:
            self._transport.pause_reading()
        self._loop.call_later(self._delay_s, self._deliver)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._loop.call_later(self._delay_s, self._close_peer)

    def _deliver(self) -> None:
        data = self._on_the_way.popleft()
        self._buffered -= len(data)
        if self._transport is not None and not self._transport.is_reading() and self._buffered <= MAX_BUFFERED:
            self._transport.resume_reading()
        if self.peer is not None and self.peer._transport is not None:
            self.peer._transport.write(data)

    def _close_peer(self) -> None:
        if self.peer is not None and self.peer._transport is not None:
            self.peer._transport.close()


class _Client(_End):
    """The end that a client has opened; it opens the other one."""

    def __init__(self, delay_s: float, to: str) -> None:
        super().__init__(delay_s)
        self._to = to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport = cast("asyncio.Transport", transport)
        self._transport.pause_reading()
        self._connecting = self._loop.create_task(self._connect(self._transport))

    async def _connect(self, transport: asyncio.Transport) -> None:
        server = _End(self._delay_s)
        server.peer = self
        try:
            if self._to.isdigit():
                await self._loop.create_connection(lambda: server, "127.0.0.1", int(self._to))
            else:
                await self._loop.create_unix_connection(lambda: server, self._to)
        except OSError:
            transport.close()
            return
        self.peer = server
        if transport.is_closing():
            self._close_peer()
        else:
            transport.resume_reading()


async def serve(delay_ms: float, to: list[str]) -> list[asyncio.Server]:
    """Listen on a free port of 127.0.0.1 for each of `to`."""
    loop = asyncio.get_running_loop()
    return [await loop.create_server(partial(_Client, delay_ms / 1000, address), "127.0.0.1", 0) for address in to]


async def _run(arguments: argparse.Namespace) -> None:
    servers = await serve(arguments.delay_ms, arguments.to)
    ports = [str(server.sockets[0].getsockname()[1]) for server in servers]
    print(f"ready at {' '.join(ports)}", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delay_proxy", description=__doc__)
    parser.add_argument("--delay-ms", type=float, default=0.5, help="delay of each direction (default: 0.5)")
    parser.add_argument("--to", action="append", required=True, help="port of 127.0.0.1, or Unix socket; repeatable")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_run(arguments))


if __name__ == "__main__":
    main()
