"""Measures how long the event loop of a process keeps its tasks waiting."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Histogram

INTERVAL_S = 0.05


async def measure_loop_lag(lag: Histogram) -> None:
    """Record how late the loop runs a timer, 20 times a second, until cancelled.

    A step that blocks the loop delays the timer, and with it everything else in the process, by its duration.
    """
    while True:
        due = time.monotonic() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        lag.observe(max(0.0, time.monotonic() - due))
