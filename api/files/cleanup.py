"""Deletes expired files and orphaned contents. Every API process runs it; all steps are idempotent."""

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
ORPHAN_CHECK_S = 3600.0
# Minimum age of an orphan. Younger content without a row may belong to an upload or a result in progress.
ORPHAN_S = 24 * 3600.0


class FileCleanup:
    """Periodically deletes expired files and orphaned contents."""

    def __init__(self, store: FileStore, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._orphans_checked_at = -math.inf

    async def run(self) -> None:
        """Clean up until cancelled."""
        await run_periodically(
            self._clean_up,
            "file cleanup",
            interval_s=EXPIRE_S,
            jitter=0.2,
            immediately=True,
            tolerates=lambda error: is_outage(error) or isinstance(error, Unavailable),
        )

    async def _clean_up(self) -> None:
        await self.expire()
        if time.monotonic() - self._orphans_checked_at >= ORPHAN_CHECK_S:
            self._orphans_checked_at = time.monotonic()
            await self.delete_orphans()

    async def expire(self) -> int:
        """Delete expired files, except the input of unfinished batches. Returns their number."""
        count = 0
        while expired := await self._store.expire():
            for file_id in expired:
                logger.info("file=%s expired", file_id)
                await self._delete_blob(file_id)
            count += len(expired)
        return count

    async def delete_orphans(self, older_than_s: float = ORPHAN_S) -> int:
        """Delete unfinished contents of writers that have died, and complete contents without a row.

        Returns the number of complete ones.
        """
        await self._blobs.delete_unfinished(older_than_s)
        count = 0
        async for names in self._blobs.names(older_than_s):
            for name in await self._store.orphans(names):
                logger.info("file=%s orphaned content deleted", name)
                await self._delete_blob(name)
                count += 1
        return count

    async def _delete_blob(self, name: str) -> None:
        """Delete a content. One that cannot be deleted must not keep the others; it is an orphan from now on."""
        try:
            await self._blobs.delete(name)
        except OSError as error:
            logger.error("file=%s its content cannot be deleted: %s", name, error)
