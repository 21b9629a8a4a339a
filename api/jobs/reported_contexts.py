"""Lets the API know the context lengths that upstreams report to the workers."""

from __future__ import annotations

from api.jobs.context_window import ContextWindow
from shared.config.models.loader import Registry
from shared.redis.context_lengths import ContextLengths
from shared.runtime.periodic import run_periodically

INTERVAL_S = 1.0


class ReportedContexts:
    """Reads the lengths of the models whose entries have none."""

    def __init__(self, registry: Registry, window: ContextWindow, lengths: ContextLengths) -> None:
        self._registry = registry
        self._window = window
        self._lengths = lengths

    async def run(self) -> None:
        """Read them until cancelled."""
        await run_periodically(
            self.read, "reading the models' context lengths", interval_s=INTERVAL_S, jitter=0.2, immediately=True
        )

    async def read(self) -> None:
        """Read them once. A length that Redis has lost stays known."""
        sources = {source for model in self._registry.models.values() if (source := model.context_source) is not None}
        self._window.learn(await self._lengths.read(sorted(sources)))
