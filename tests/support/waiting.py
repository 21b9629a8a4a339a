"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.02


async def eventually(probe: Callable[[], Awaitable[T | None]], what: str, *, within_s: float = 20) -> T:
    """Poll `probe` and return its first true value. After the deadline, fail with `what` was expected."""
    deadline = time.monotonic() + within_s
    while True:
        value = await probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s} s; last seen: {value!r}")
        await asyncio.sleep(POLL_S)


def eventually_sync(probe: Callable[[], T | None], what: str, *, within_s: float = 20) -> T:
    """The same for a test without an event loop."""
    deadline = time.monotonic() + within_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s} s; last seen: {value!r}")
        time.sleep(POLL_S)
