"""Divides work that grows with a prompt or an answer, so that one step of an event loop stays short."""

from __future__ import annotations

import asyncio
import time

SLICE_S = 0.004


class TimeSlice:
    """Measures how long a task has run since it last gave way to others.

    A loop over many items checks `over` after each item, which must itself be short, and awaits `give_way` if it is
    true.
    """

    __slots__ = ("_ends_at", "_slice_s")

    def __init__(self, slice_s: float = SLICE_S) -> None:
        self._slice_s = slice_s
        self._ends_at = time.perf_counter() + slice_s

    @property
    def over(self) -> bool:
        """Whether the task has run for `slice_s` seconds."""
        return time.perf_counter() >= self._ends_at

    async def give_way(self) -> None:
        """Let the loop run other tasks, then start a new slice."""
        await asyncio.sleep(0)
        self._ends_at = time.perf_counter() + self._slice_s
