"""Keeps the limits of an API process up to date with those in the database."""

from __future__ import annotations

from api.limits.rules import LimitBook
from api.limits.store import LimitStore
from shared.runtime.periodic import run_periodically, run_tolerantly

RELOAD_S = 5.0
_STEP = "reading rate limits"


class LimitReload:
    """Reads the limits every few seconds. While the database is unavailable, the limits remain as they are."""

    def __init__(self, book: LimitBook, store: LimitStore) -> None:
        self._book = book
        self._store = store

    async def load(self) -> None:
        """Read the limits now.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, OSError: the database is unavailable.
        """
        self._book.replace([stored.limit() for stored in await self._store.all()])

    async def load_if_available(self) -> None:
        """Read the limits before the first request. Without the database, no request can be accepted anyway."""
        await run_tolerantly(self.load, _STEP)

    async def run(self) -> None:
        """Read the limits every few seconds, until cancelled."""
        await run_periodically(self.load, _STEP, interval_s=RELOAD_S)
