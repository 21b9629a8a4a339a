"""Delays reads so that many connections are read in one iteration of the event loop."""

from __future__ import annotations

import asyncio


class ReadCoalescer:
    """Wakes all its waiters together, with one timer."""

    def __init__(self) -> None:
        self._next: asyncio.Event | None = None

    async def wait(self, interval_s: float) -> None:
        """Wait for the next wake-up. The first waiter sets its time: after `interval_s` seconds."""
        if self._next is None:
            self._next = asyncio.Event()
            asyncio.get_running_loop().call_later(interval_s, self._wake)
        await self._next.wait()

    def _wake(self) -> None:
        assert self._next is not None
        self._next.set()
        self._next = None
