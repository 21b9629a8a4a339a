"""Keeps the sums of usage up to date. Every API process tries; the database lets one at a time do it."""

from __future__ import annotations

import asyncio
import time

from shared.postgres.usage_sums import SumsState, UsageSums
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

INTERVAL_S = 5.0
# The pause between portions, which leaves room for other writers.
PAUSE_S = 0.1


class UsageRollUp:
    """Adds the entries of the ledger to the sums, and reports their age and the entries without a price."""

    def __init__(self, sums: UsageSums, metrics: Metrics) -> None:
        self._sums = sums
        self._metrics = metrics
        # All entries that were there at this time are in the sums.
        self._complete_at = time.monotonic()
        # A later time, and the id that no transaction had reached by then.
        self._awaited: tuple[float, int] | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        await run_periodically(self.step, "usage roll-up", interval_s=INTERVAL_S, jitter=0.2)

    async def step(self) -> None:
        """Add all entries that can be added now."""
        now, state = time.monotonic(), await self._sums.state()
        while state.due:
            added = await self._sums.add()
            if added is None:  # another process adds them
                break
            for model, count in added.unpriced.items():
                self._metrics.usage_unpriced.labels(self._metrics.model_label(model)).inc(count)
            for model, cost in added.costs.items():
                self._metrics.usage_cost.labels(self._metrics.model_label(model)).inc(float(cost))
            now, state = time.monotonic(), await self._sums.state()
            if state.due:
                await asyncio.sleep(PAUSE_S)
        self._observe(now, state)

    def _observe(self, now: float, state: SumsState) -> None:
        """Set the age of the sums.

        On a busy system, there are always entries that are not yet in them. So what counts is how long ago the newest
        transaction was that they contain now.
        """
        if not state.behind:
            self._complete_at, self._awaited = now, None
        elif self._awaited is not None and state.summed_before >= self._awaited[1]:
            self._complete_at, self._awaited = self._awaited[0], (now, state.next)
        elif self._awaited is None:
            self._awaited = (now, state.next)
        self._metrics.usage_sums_age.set(max(0.0, time.monotonic() - self._complete_at))
