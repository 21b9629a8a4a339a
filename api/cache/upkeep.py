"""Keeps the response cache within its bounds. Every API process runs it, in small statements."""

from __future__ import annotations

import asyncio
import logging
import time

from api.cache.response_cache import ResponseCache
from api.cache.store import CacheStore
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
# Counting all entries takes longer.
CLEANUP_S = 30.0
# The pause between statements, which leaves room for other writers.
PAUSE_S = 0.1


class CacheUpkeep:
    """Records which entries were used, and deletes the expired ones and those beyond `max_bytes`."""

    def __init__(self, cache: ResponseCache, store: CacheStore, metrics: Metrics, *, max_bytes: int) -> None:
        self._cache = cache
        self._store = store
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._cleaned_at = float("-inf")

    async def run(self) -> None:
        """Run until cancelled."""
        await run_periodically(self._step, "response cache upkeep", interval_s=INTERVAL_S, jitter=0.2)

    async def record_uses(self) -> None:
        """Write the hits since the last call."""
        if counts := self._cache.take_uses():
            try:
                await self._store.record_uses(counts)
            except BaseException:
                self._cache.add_uses(counts)
                raise

    async def clean_up(self) -> None:
        """Delete entries that have expired or do not fit, and report the size."""
        while count := await self._store.delete_expired():
            await self._evicted(count, "expired")
        size = await self._store.size()
        if size.bytes > self._max_bytes:
            for keys in await self._store.excess(self._max_bytes):
                await self._evicted(await self._store.delete(keys), "size")
            size = await self._store.size()
        self._metrics.cache_entries.set(size.entries)
        self._metrics.cache_bytes.set(size.bytes)

    async def _step(self) -> None:
        await self.record_uses()
        if time.monotonic() - self._cleaned_at >= CLEANUP_S:
            await self.clean_up()
            self._cleaned_at = time.monotonic()

    async def _evicted(self, count: int, reason: str) -> None:
        self._metrics.cache_evictions.labels(reason).inc(count)
        await asyncio.sleep(PAUSE_S)
