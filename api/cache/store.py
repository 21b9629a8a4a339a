"""SQL about the entries of the response cache. Jobs that end add entries, see `shared.postgres.job_ends`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Delete, Integer, LargeBinary, Select, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from api.keys.projects import ProjectIds
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records, seconds
from shared.postgres.tables import CachedAnswerRow, SecretRow

NAME = "response_cache"
# Rows per statement.
PORTION = 500
# The most entries that one clean-up evicts: reading them sorts all entries.
MAX_EXCESS = 100_000
_USES = Records("uses", key=LargeBinary, count=BigInteger)


@dataclass(frozen=True, slots=True)
class CacheSize:
    """The number of stored answers, and their bytes."""

    entries: int
    bytes: int


def _deletion(keys: Select[Any]) -> Delete:
    """Delete the entries that a select with row locks returns."""
    locked = keys.cte("locked")
    return delete(CachedAnswerRow).where(CachedAnswerRow.key.in_(select(locked.c.key)))


def _record_uses() -> Prepared:
    locked = (
        select(CachedAnswerRow.key, _USES.count.label("count"))
        .where(CachedAnswerRow.key == _USES.key)
        .order_by(CachedAnswerRow.key)
        .with_for_update(of=CachedAnswerRow)
        .cte("locked")
    )
    return Prepared(
        update(CachedAnswerRow)
        .where(CachedAnswerRow.key == locked.c.key)
        .values(hits=CachedAnswerRow.hits + locked.c.count, used_at=func.now())
    )


_RECORD_USES = _record_uses()
_SIZE = Prepared(
    select(func.count().label("entries"), func.coalesce(func.sum(CachedAnswerRow.bytes), 0).label("bytes")).select_from(
        CachedAnswerRow
    )
)
_DELETE_EXPIRED = Prepared(
    _deletion(
        select(CachedAnswerRow.key)
        .where(CachedAnswerRow.expires_at <= func.now())
        .order_by(CachedAnswerRow.expires_at)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
    ).returning(CachedAnswerRow.key)
)


class CacheStore(ProjectIds):
    """The entries of the response cache in PostgreSQL.

    Statements that lock several entries lock them in the order of their keys, as those that end jobs do, or skip the
    locked ones, so that none waits for another that waits for it.
    """

    async def secret(self, candidate: bytes) -> bytes:
        """The secret of this installation's keys: the first candidate of any process."""
        async with self._engine.connect() as connection:
            await connection.execute(upsert(SecretRow).values(name=NAME, value=candidate).on_conflict_do_nothing())
            found = await connection.execute(select(SecretRow.value).where(SecretRow.name == NAME))
            return found.scalar_one()

    async def record_uses(self, counts: Mapping[bytes, int]) -> None:
        """Add hits to entries, by key."""
        records = [{"key": key, "count": count} for key, count in counts.items()]
        await _RECORD_USES.run(self._engine, _USES.parameters(records))

    async def size(self) -> CacheSize:
        """Count the entries and their bytes."""
        (row,) = await _SIZE.run(self._engine, {})
        return CacheSize(row.entries, int(row.bytes))

    async def delete_expired(self) -> int:
        """Delete a portion of the expired entries. Returns their number."""
        return len(await _DELETE_EXPIRED.run(self._engine, {"limit": PORTION}))

    async def excess(self, max_bytes: int) -> list[list[bytes]]:
        """The keys of the entries beyond `max_bytes`, those first that have not been used for longest, in portions."""
        total = func.sum(CachedAnswerRow.bytes).over(order_by=(CachedAnswerRow.used_at.desc(), CachedAnswerRow.key))
        summed = select(CachedAnswerRow.key, total.label("total")).subquery()
        beyond = (
            select(summed.c.key).where(summed.c.total > max_bytes).order_by(summed.c.total.desc()).limit(MAX_EXCESS)
        )
        keys = await self._all(beyond, lambda row: bytes(row.key))
        return [keys[start : start + PORTION] for start in range(0, len(keys), PORTION)]

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Delete entries, without those that are locked. Returns the number of those that it has deleted."""
        found = select(CachedAnswerRow.key).where(CachedAnswerRow.key.in_(keys))
        return await self._deleted(found.with_for_update(skip_locked=True))

    async def purge(
        self, *, project_id: int | None = None, model: str | None = None, older_than_s: float | None = None
    ) -> int:
        """Delete the entries to which all of these apply; None: to any. Returns their number."""
        found = select(CachedAnswerRow.key)
        if project_id is not None:
            found = found.where(CachedAnswerRow.project_id == project_id)
        if model is not None:
            found = found.where(CachedAnswerRow.model == model)
        if older_than_s is not None:
            found = found.where(CachedAnswerRow.created_at <= func.now() - seconds(older_than_s))
        found = found.order_by(CachedAnswerRow.key).limit(PORTION).with_for_update()
        count = deleted = await self._deleted(found)
        while deleted == PORTION:
            deleted = await self._deleted(found)
            count += deleted
        return count

    async def _deleted(self, keys: Select[Any]) -> int:
        """Delete the entries that a select with row locks returns, and return their number."""
        async with self._engine.connect() as connection:
            return (await connection.execute(_deletion(keys))).rowcount
