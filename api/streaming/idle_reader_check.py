"""Checks idle readers against the stores, so that a lost message or a Redis restart does not stall them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from api.streaming.reader import Reader
from api.streaming.stored_events import StoredEvents

# Checks per `resync_s`, and jobs per query.
CHECKS = 5
CHUNK = 500


class IdleReaderCheck:
    """Finds readers that have missed events, among those without a live event for `resync_s` seconds."""

    def __init__(self, readers: Mapping[str, AbstractSet[Reader]], stored: StoredEvents, *, resync_s: float) -> None:
        """`readers`: the hub's readers, by job id."""
        self._readers = readers
        self._stored = stored
        self._resync_s = resync_s

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(self._resync_s / CHECKS)
            now = time.monotonic()
            silent = [
                job_id
                for job_id, readers in self._readers.items()
                if any(now - reader.active_at >= self._resync_s for reader in readers)
            ]
            for start in range(0, len(silent), CHUNK):
                await self._check(silent[start : start + CHUNK])

    async def _check(self, job_ids: Sequence[str]) -> None:
        last, ended = await self._stored.states(job_ids)
        now = time.monotonic()
        for job_id in job_ids:
            for reader in self._readers.get(job_id, ()):
                if reader.is_stale(last.get(job_id, 0), ended=job_id in ended):
                    reader.fall_behind()
                else:
                    reader.active_at = now
