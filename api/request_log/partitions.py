"""Creates the partitions of the request log ahead, and drops those whose time is over.

Both need a lock on the log for an instant. If a statement that ends jobs has it, they give up at once and try again
later, so that no job waits for them. Without a partition for its day, a row is in the default one; it is moved when the
partition is created, and deleted in small steps if it was not.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log.store import MOST_GIVEN_UP, RequestLogStore
from shared.postgres.engine import transaction
from shared.postgres.store import Store
from shared.runtime.outages import is_outage
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

LOG, BODIES = "request_log", "request_bodies"
INTERVAL_S = 300.0
# Partitions exist for so many days after today.
AHEAD_DAYS = 3
# So many rows are moved from the default partition to that of their day, at most: others wait for it.
MOST_MOVED = 10_000
# Tries to get a lock in one round, and the pause between them.
TRIES = 5
PAUSE_S = 0.5
# Rows of the default partition per statement.
DELETED = 5_000
# SQLSTATEs: lock_not_available, deadlock_detected.
_RETRIED = ("55P03", "40P01")
_NAME = re.compile(rf"(?:{LOG}|{BODIES})_(\d{{8}})")


class Partitions(Store):
    """The partitions of the request log."""

    async def days(self, parent: str) -> set[date]:
        """The days, by UTC, that have a partition."""
        statement = text(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
            " WHERE inhparent = to_regclass(:parent)"
        )
        names = await self._all(statement.bindparams(parent=parent), lambda row: str(row.relname))
        found = (_NAME.fullmatch(name) for name in names)
        return {datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC).date() for match in found if match}

    async def today(self) -> date:
        """The day by UTC, by the clock of PostgreSQL: if that of one process is wrong, nothing must be dropped."""
        row = await self._first(text("SELECT CAST(now() AT TIME ZONE 'UTC' AS date) AS today"))
        assert row is not None
        today: date = row.today
        return today

    async def create(self, parent: str, day: date) -> str:
        """Create the partition of a day. Returns `created`, `exists`, `busy` (another process creates it), or `full`:
        too many rows of the day are in the default partition, where they stay.

        Raises:
            DBAPIError: the lock was not free.
        """
        statement = text("SELECT create_log_partition(:parent, :day, :most_moved) AS result")
        row = await self._first(statement.bindparams(parent=parent, day=day, most_moved=MOST_MOVED))
        assert row is not None
        return str(row.result)

    async def drop(self, parent: str, day: date) -> None:
        """Drop the partition of a day.

        Raises:
            DBAPIError: the lock was not free.
        """
        async with transaction(self._engine) as connection:
            await connection.execute(text("SELECT drop_log_partition(:parent, :day)"), {"parent": parent, "day": day})

    async def delete_default(self, parent: str, before: datetime) -> int:
        """Delete some rows of jobs that ended before a time from the default partition. Returns their number."""
        table = {LOG: "request_log_default", BODIES: "request_bodies_default"}[parent]
        statement = text(
            f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608
            f"SELECT ctid FROM {table} WHERE ended_at < :before LIMIT {DELETED}))"
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement, {"before": before})).rowcount

    async def delete_keys(self, before: date) -> int:
        """Delete the data keys of days before one: their bodies cannot be read any more, wherever copies of them are.

        Returns their number.
        """
        statement = text("DELETE FROM data_keys WHERE day < :before")
        async with self._engine.connect() as connection:
            return (await connection.execute(statement, {"before": before})).rowcount


class PartitionUpkeep:
    """Keeps partitions from today to `AHEAD_DAYS` ahead, and rows and bodies for their numbers of days."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics, *, body_days: int, row_days: int) -> None:
        self._metrics = metrics
        self._partitions = Partitions(engine)
        self._store = RequestLogStore(engine)
        self._days = {BODIES: body_days, LOG: row_days}
        # Days that stay in the default partition.
        self._full: set[tuple[str, date]] = set()

    async def run(self) -> None:
        """Run until cancelled."""
        await run_periodically(
            self.step,
            "upkeep of the request log's partitions",
            interval_s=INTERVAL_S,
            jitter=0.2,
            immediately=True,
            # Without the right to create them, for example, rows are in the default partitions.
            tolerates=lambda error: is_outage(error) or isinstance(error, DBAPIError),
        )

    async def step(self) -> None:
        """Create and drop what is due."""
        today = await self._partitions.today()
        for parent in (LOG, BODIES):
            await self._create(parent, [today + timedelta(days=ahead) for ahead in range(AHEAD_DAYS + 1)])
        for parent in (BODIES, LOG):
            await self._retain(parent, today - timedelta(days=self._days[parent]))

    async def _create(self, parent: str, days: Iterable[date]) -> None:
        existing = await self._partitions.days(parent)
        for day in days:
            if day in existing or (parent, day) in self._full:
                continue
            for _ in range(TRIES):
                try:
                    result = await self._partitions.create(parent, day)
                except DBAPIError as error:
                    if not _is_locked(error):
                        raise
                    await asyncio.sleep(PAUSE_S)
                    continue
                if result == "full":
                    self._full.add((parent, day))
                    logger.warning(
                        "more than %d rows of %s stay in the default partition of %s", MOST_MOVED, day, parent
                    )
                break

    async def _retain(self, parent: str, first: date) -> None:
        """Delete what is of days before `first`."""
        before = datetime.combine(first, time.min, UTC)
        deleted = DELETED
        while deleted == DELETED:
            deleted = await self._partitions.delete_default(parent, before)
        is_complete = True
        if days := sorted(day for day in await self._partitions.days(parent) if day < first):
            try:
                async with self._store.without_writers():
                    is_complete = await self._drop_all(parent, days)
            except DBAPIError as error:
                if not _is_locked(error):
                    raise
                is_complete = await self._drop_all(parent, days)
        if parent == BODIES:
            if is_complete:
                await self._partitions.delete_keys(first)
            await self._give_up(before)

    async def _give_up(self, before: datetime) -> None:
        """Note that bodies that were not written in time will not be."""
        lost = given_up = await self._store.give_up(before)
        while given_up == MOST_GIVEN_UP:
            given_up = await self._store.give_up(before)
            lost += given_up
        if lost:
            logger.error("%d bodies of jobs that ended before %s are lost: they were not written", lost, before.date())
            self._metrics.log_bodies.labels("lost").inc(lost)

    async def _drop_all(self, parent: str, days: Iterable[date]) -> bool:
        """Drop partitions. False: the lock of one was not free; the next round tries again."""
        for day in days:
            if not await self._drop(parent, day):
                return False
        return True

    async def _drop(self, parent: str, day: date) -> bool:
        """Drop a partition. False: its lock was not free; the next round tries again."""
        for _ in range(TRIES):
            try:
                await self._partitions.drop(parent, day)
            except DBAPIError as error:
                if not _is_locked(error):
                    raise
                await asyncio.sleep(PAUSE_S)
                continue
            logger.info("dropped the partition of %s of %s", day, parent)
            return True
        logger.warning("cannot drop the partition of %s of %s now; trying again later", day, parent)
        return False


def _is_locked(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in _RETRIED
