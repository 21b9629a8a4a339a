"""Forgets files whose time is up, and bytes that no file knows. Every API process may; each step is harmless twice."""

from __future__ import annotations

import logging
import math
import time

from api.files.blobs import Blobs
from api.files.store import FileStore
from shared.domain.errors import Unavailable
from shared.runtime.outages import is_outage
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

EXPIRE_S = 60.0
TIDY_S = 3600.0
# An upload, or a result whose row is being written, may be as old as this; what is older has lost its writer.
ORPHAN_S = 24 * 3600.0


class FileCleanup:
    """Sweeps files and their bytes for as long as its process lives."""

    def __init__(self, store: FileStore, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._tidied_at = -math.inf

    async def run(self) -> None:
        """Sweep until cancelled."""
        await run_periodically(
            self._sweep,
            "file cleanup",
            interval_s=EXPIRE_S,
            jitter=0.2,
            immediately=True,
            tolerates=lambda error: is_outage(error) or isinstance(error, Unavailable),
        )

    async def _sweep(self) -> None:
        await self.expire()
        if time.monotonic() - self._tidied_at >= TIDY_S:
            self._tidied_at = time.monotonic()
            await self.tidy()

    async def expire(self) -> int:
        """Forget files whose time is up, but for those that an unfinished batch reads. Returns how many."""
        count = 0
        while expired := await self._store.expire():
            for file_id in expired:
                logger.info("file=%s expired", file_id)
                await self._blobs.delete(file_id)
            count += len(expired)
        return count

    async def tidy(self, older_than_s: float = ORPHAN_S) -> int:
        """Forget what a writer that died has left, half or whole, and what a deletion did not reach.

        Returns how many whole ones there were.
        """
        await self._blobs.tidy(older_than_s)
        count = 0
        async for names in self._blobs.names(older_than_s):
            for name in await self._store.unknown(names):
                logger.info("file=%s its bytes are nobody's; deleted", name)
                await self._blobs.delete(name)
                count += 1
        return count
