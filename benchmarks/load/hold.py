"""Opens streams of waiting jobs and holds them, timing their heartbeats."""

from __future__ import annotations

import asyncio
from array import array
from time import perf_counter

from benchmarks.load.plan import ID, Plan
from benchmarks.load.requests import request

# Concurrent connection attempts; more would only wait in the server's accept queue.
MAX_CONNECTING = 32


class Held(asyncio.Protocol):
    """One stream: records how late each heartbeat was."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._last = 0.0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if not self.opened.done():
            if not data.startswith(b"HTTP/1.1 200"):
                self._hold.failures.append(data[:300].decode(errors="replace"))
            self.opened.set_result(None)
        elif b"keepalive" in data:
            self._hold.late.append(max(0.0, now - self._last - self._hold.heartbeat_s))
        self._last = now

    def connection_lost(self, error: Exception | None) -> None:
        if not self._hold.closing:
            self._hold.failures.append(f"a held stream broke: {error or 'closed by the server'}")
        if not self.opened.done():
            self.opened.set_result(None)


class Hold:
    """All held streams."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._transports: list[asyncio.Transport] = []
        self.heartbeat_s = plan.heartbeat_s
        self.late: array[float] = array("d")
        self.failures: list[str] = []
        self.closing = False

    async def open(self) -> None:
        """Open all streams. Returns once each has received its first bytes."""
        limit = asyncio.Semaphore(MAX_CONNECTING)

        async def one(job_id: str) -> None:
            async with limit:
                loop = asyncio.get_running_loop()
                transport, held = await loop.create_connection(lambda: Held(self), "127.0.0.1", self._plan.port)
                path = self._plan.path.replace(ID, job_id)
                transport.write(request(self._plan.port, "GET", path, self._plan.headers))
                self._transports.append(transport)
                await held.opened

        await asyncio.gather(*(one(job_id) for job_id in self._plan.ids))

    async def keep(self, seconds: float) -> int:
        """Hold the streams for `seconds`, then close them. Returns how many were still open."""
        await asyncio.sleep(seconds)
        self.closing = True
        still_open = sum(not transport.is_closing() for transport in self._transports)
        for transport in self._transports:
            transport.close()
        return still_open
