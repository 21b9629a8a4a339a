"""Reports the context length that the upstream of this worker's model has, for the API.

Requests that the API refuses because of it never reach the worker. They count as requests all the same, so that a
length that has changed is read again.
"""

from __future__ import annotations

import time

from shared.redis.context_lengths import ContextLengths
from shared.runtime.periodic import run_periodically
from workers.engines.base import ManagedEngine, ReportedContext

INTERVAL_S = 1.0
# Redis may have lost it.
AGAIN_S = 30.0


class ContextReport:
    """Writes the length to Redis when it has been read, and now and then."""

    def __init__(self, engine: ManagedEngine, lengths: ContextLengths) -> None:
        self._engine = engine
        self._lengths = lengths
        self._written: ReportedContext | None = None
        self._written_at = 0.0

    async def run(self) -> None:
        """Report until cancelled."""
        await run_periodically(self.report, "report of the context length", interval_s=INTERVAL_S, immediately=True)

    async def report(self) -> None:
        """Write the current length, unless that has just been done, and have it read again if requests were refused."""
        context = self._engine.stats().context
        if context is None:
            return
        now = time.monotonic()
        if context != self._written:
            await self._lengths.write(context.source, context.tokens)
            self._written, self._written_at = context, now
        elif context.tokens is not None and now - self._written_at >= AGAIN_S:
            await self._lengths.keep(context.source, context.tokens)
            self._written_at = now
        if await self._lengths.has_refused(context.source):
            context.use()
