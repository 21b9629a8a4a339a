"""Lets the API know the context lengths that upstreams report to the workers, and the workers what was refused."""

from __future__ import annotations

import time

from api.context.window import ContextWindow
from shared.config.models.loader import Registry
from shared.redis.context_lengths import ContextLengths
from shared.runtime.periodic import run_periodically

INTERVAL_S = 1.0
# How long a length stays known after Redis has lost it: workers write it again every 30 seconds.
KEPT_S = 90.0


class ReportedContexts:
    """Reads the lengths of the models whose entries have none."""

    def __init__(self, registry: Registry, window: ContextWindow, lengths: ContextLengths) -> None:
        self._registry = registry
        self._window = window
        self._lengths = lengths
        # By source, the length and when it was last in Redis, by the monotonic clock.
        self._known: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Read them until cancelled."""
        await run_periodically(
            self.read, "reading the models' context lengths", interval_s=INTERVAL_S, jitter=0.2, immediately=True
        )

    async def read(self) -> None:
        """Read them once, and report for which of them requests were refused."""
        sources = {source for model in self._registry.models.values() if (source := model.context_source) is not None}
        lengths, now = await self._lengths.read(sorted(sources)), time.monotonic()
        self._known |= {source: (tokens, now) for source, tokens in lengths.items()}
        self._known = {source: known for source, known in self._known.items() if now - known[1] < KEPT_S}
        self._window.learn({source: tokens for source, (tokens, _) in self._known.items()})
        await self._lengths.note_refusals(self._window.take_refusals())
