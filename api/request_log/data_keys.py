"""The data keys of the request log: one per day, in a table, encrypted with a master key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log.encryption import Cipher, MasterKeys, UnknownMasterKey, new_data_key
from shared.postgres.request_log_tables import DataKeyRow
from shared.postgres.store import Store

# The keys of the last days are cached: most bodies are written within seconds.
CACHED_DAYS = 3


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key that can be used."""

    id: int
    cipher: Cipher


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """What `DataKeys.rotate` has done: the numbers of keys that it has encrypted anew, and that it could not read."""

    changed: int
    unreadable: int


class DataKeys(Store):
    """Creates and reads data keys."""

    def __init__(self, engine: AsyncEngine, masters: MasterKeys) -> None:
        super().__init__(engine)
        self._masters = masters
        self._cache: dict[date, DataKey] = {}

    async def of_day(self, day: date) -> DataKey:
        """The key for the bodies of jobs that ended on this day, by UTC; created if there is none.

        Raises:
            UnknownMasterKey: there is no master key, or not the one that it is encrypted with.
            DecryptionFailed: its row was changed.
        """
        if (cached := self._cache.get(day)) is not None:
            return cached
        found = await self._first(self._by_day(day))
        if found is None:
            master, wrapped = self._masters.wrap(new_data_key(), day)
            values = {"day": day, "master": master, "wrapped": wrapped}
            # Another process may create it at the same time: then its key is the one.
            await self._changes(upsert(DataKeyRow).values(values).on_conflict_do_nothing())
            found = await self._first(self._by_day(day))
            if found is None:
                raise UnknownMasterKey(f"the data key of {day} was deleted while it was created")
        key = DataKey(found.id, Cipher(self._masters.unwrap(found.master, bytes(found.wrapped), day)))
        oldest = datetime.now(UTC).date() - timedelta(days=CACHED_DAYS)
        self._cache = {known: kept for known, kept in self._cache.items() if known >= oldest} | {day: key}
        return key

    async def rotate(self) -> Rewrapped:
        """Encrypt all data keys with the current master key that are encrypted with another one."""
        changed = unreadable = 0
        outdated = (
            select(DataKeyRow.id, DataKeyRow.day, DataKeyRow.master, DataKeyRow.wrapped)
            .where(DataKeyRow.master != self._masters.current)
            .order_by(DataKeyRow.day)
        )
        for row in await self._all(outdated, lambda row: row):
            if not self._masters.knows(row.master):
                unreadable += 1
                continue
            master, wrapped = self._masters.wrap(self._masters.unwrap(row.master, bytes(row.wrapped), row.day), row.day)
            same = (DataKeyRow.id == row.id, DataKeyRow.master == row.master)
            changed += await self._changes(update(DataKeyRow).where(*same).values(master=master, wrapped=wrapped))
        return Rewrapped(changed, unreadable)

    async def count_by_master(self) -> dict[str, int]:
        """The number of data keys by the id of the master key that they are encrypted with."""
        statement = select(DataKeyRow.master, func.count().label("number")).group_by(DataKeyRow.master)
        return dict(await self._all(statement, lambda row: (row.master, row.number)))

    @staticmethod
    def _by_day(day: date) -> object:
        return select(DataKeyRow.id, DataKeyRow.master, DataKeyRow.wrapped).where(DataKeyRow.day == day)
