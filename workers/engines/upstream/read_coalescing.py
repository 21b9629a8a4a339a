"""A beat that many wait for together."""

from __future__ import annotations

import asyncio


class ReadCoalescer:
    """Who waits for it goes on together with all others that do: one timer, and their work in one turn of the loop."""

    def __init__(self) -> None:
        self._next: asyncio.Event | None = None

    async def wait(self, within_s: float) -> None:
        """Wait for the next beat. Who waits first says when it comes."""
        if self._next is None:
            self._next = asyncio.Event()
            asyncio.get_running_loop().call_later(within_s, self._strike)
        await self._next.wait()

    def _strike(self) -> None:
        assert self._next is not None
        self._next.set()
        self._next = None
