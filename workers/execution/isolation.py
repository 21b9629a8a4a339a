"""The turns of suspects, which run alone on an otherwise empty engine until they have a token.

A suspect (`shared.domain.suspects`) may kill the engine. While one has its turn, the gate is closed: no other job
enters. Several suspects follow each other without opening it, for a while; then it stays open as long as it was closed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

# How long suspects may follow each other while other jobs wait.
SERIES_S = 10.0
# The longest time for which the gate stays open before the next suspect.
OPEN_MAX_S = 60.0


class Isolation:
    """The gate of one engine, and the suspects that wait for their turn. Lives on one event loop."""

    def __init__(self) -> None:
        self._stopped = False
        # The suspect that has its turn, and those that wait for theirs.
        self._turn: object | None = None
        self._line: deque[object] = deque()
        # How many suspects have had their turn since the gate was closed.
        self.turns = 0
        # On the monotonic clock: when the gate was closed, until when the next suspect may follow at once, and until
        # when the gate stays open.
        self._closed_at = 0.0
        self._series_until = 0.0
        self._open_until = 0.0
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def closed(self) -> bool:
        """Whether other jobs than suspects have to wait."""
        return self._turn is not None or (bool(self._line) and time.monotonic() < self._series_until)

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._stopped = True
        self.changed()

    def resume(self) -> None:
        """Undo `stop`."""
        self._stopped = False

    def changed(self) -> None:
        """Check again the conditions of all that wait in `until`."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait for a condition, `stop` or the end of the time. Returns whether it is met and nothing was stopped."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._stopped and not condition():
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await asyncio.wait([waiting], timeout=left_s)
            finally:
                self._waiting.discard(waiting)
        return not self._stopped

    async def open(self) -> bool:
        """Wait until the gate is open. Returns False after `stop`."""
        return await self.until(lambda: not self.closed)

    async def take_turn(self, suspect: object, is_empty: Callable[[], bool]) -> bool:
        """Wait for a suspect's turn and close the gate. Returns False after `stop`.

        `is_empty`: whether the engine is; no other job has to wait for its turn then.
        """
        self._line.append(suspect)
        try:
            if not await self.until(lambda: self._turn is None and self._line[0] is suspect):
                return False
            if not self.closed:
                await self.until(is_empty, self._open_until - time.monotonic())
                self._closed_at = time.monotonic()
                self._series_until = self._closed_at + SERIES_S
                self.turns = 0
            if self._stopped:
                return False
            self._turn = suspect
            self.turns += 1
            return True
        finally:
            self._line.remove(suspect)
            self.changed()

    def end_turn(self, suspect: object) -> None:
        """End the suspect's turn, if it has not ended."""
        if self._turn is not suspect:
            return
        self._turn = None
        if not self.closed:
            now = time.monotonic()
            self._series_until = 0.0
            self._open_until = now + min(now - self._closed_at, OPEN_MAX_S)
        self.changed()
