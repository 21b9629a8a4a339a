"""The circuit breaker of a model: while its upstream fails, no jobs are claimed for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

from shared.domain.job import OpenBreaker

# It opens after this many failures in a row. If a request may be the cause, they are of at least two jobs.
FAILURES = 5
# First and longest time for which it is open before a job is let through as a probe; doubled after each failed probe.
OPEN_S = (2.0, 60.0)


class BreakerState(StrEnum):
    """Closed: jobs pass. Open: none passes. Half open: one passes as a probe, and its outcome decides."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Counts the failures of one upstream. Lives on one event loop."""

    def __init__(self, on_change: Callable[[BreakerState], None]) -> None:
        self.state = BreakerState.CLOSED
        # What stands for the one job that passes while it is half open and is under way.
        self.probe: object | None = None
        # Since when it has not been closed, and why.
        self.opened: OpenBreaker | None = None
        self._on_change = on_change
        self._failures = 0
        self._jobs: set[str] = set()
        self._open_s = OPEN_S[0]
        self._timer: asyncio.TimerHandle | None = None

    def succeeded(self) -> None:
        """Record that the upstream has answered."""
        if self._failures:
            self._failures = 0
            self._jobs.clear()
        if self.state is not BreakerState.CLOSED:
            self.opened = None
            self._open_s = OPEN_S[0]
            self._change(BreakerState.CLOSED)

    def failed(self, job_id: str, reason: str, *, by_request: bool) -> None:
        """Record a failure of the upstream. `by_request`: the request may be the cause, so that others may succeed."""
        self._failures += 1
        if len(self._jobs) < FAILURES:
            self._jobs.add(job_id)
        if self.state is BreakerState.HALF_OPEN:
            self._open_s = min(2 * self._open_s, OPEN_S[1])
        elif self.state is BreakerState.OPEN or self._failures < FAILURES or (by_request and len(self._jobs) == 1):
            return
        since = self.opened.since if self.opened is not None else datetime.now(UTC)
        self.opened = OpenBreaker(since, reason)
        delay_s = self._open_s * random.uniform(0.75, 1)
        self._change(BreakerState.OPEN)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._half_open)

    def allow_probe(self) -> None:
        """Let a job through as a probe now, if it is open."""
        if self.state is BreakerState.OPEN:
            self._half_open()

    def _half_open(self) -> None:
        self._change(BreakerState.HALF_OPEN)

    def _change(self, state: BreakerState) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.state = state
        self.probe = None
        self._on_change(state)
