"""SQL that removes the name of an end user from the ledger and its sums. All amounts remain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    func,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.postgres.engine import limit_idle, transaction
from shared.postgres.store import Store
from shared.postgres.tables import Timestamp
from shared.postgres.usage_sums import KEYS, VALUES, add_to_sums
from shared.postgres.usage_tables import UsageEventRow, UsageSumRow, UsageWatermarkRow

# Quarters of an hour in one transaction: of each, all entries of the project are read.
PORTION = 50


@dataclass(frozen=True, slots=True)
class LedgerPortion:
    """Up to which quarter of an hour the ledger was changed; None: nothing is left. `entries`: how many were."""

    until: datetime | None
    entries: int


class LedgerErasure(Store):
    """Removes names from the ledger."""

    async def erase(self, project_id: int, end_user: str, after: datetime | None) -> LedgerPortion:
        """Remove a user's name from the entries of the next quarters of an hour after a time, and from their sums.

        The sums say when the user has entries, so that the ledger needs no index of its users. The last call, which
        returns no time, is about the entries that are not in the sums yet.
        """
        async with transaction(self._engine) as connection:
            await _stop_roll_up(connection)
            times = await _quarter_hours(connection, project_id, end_user, after)
            if times:
                await _merge_sums(connection, project_id, end_user, times)
                return LedgerPortion(times[-1], await _erase_entries(connection, project_id, end_user, times))
            summed = select(UsageWatermarkRow.summed_before).scalar_subquery()
            rest = _entries(project_id, end_user, UsageEventRow.written_by >= summed)
            return LedgerPortion(None, (await connection.execute(rest)).rowcount)


async def _stop_roll_up(connection: AsyncConnection) -> None:
    """Keep entries from being added to the sums until the end of the transaction: under the name that they had."""
    await connection.execute(select(UsageWatermarkRow.id, limit_idle()).with_for_update(of=UsageWatermarkRow))


async def _quarter_hours(
    connection: AsyncConnection, project_id: int, end_user: str, after: datetime | None
) -> Sequence[datetime]:
    starts_at = UsageSumRow.starts_at
    statement = select(starts_at).where(UsageSumRow.project_id == project_id, UsageSumRow.end_user == end_user)
    if after is not None:
        statement = statement.where(starts_at > after)
    times = await connection.execute(statement.distinct().order_by(starts_at).limit(PORTION))
    return times.scalars().all()


async def _merge_sums(connection: AsyncConnection, project_id: int, end_user: str, times: Sequence[datetime]) -> None:
    """Add the sums of the user to those of jobs without an end user."""
    names = (*KEYS, *VALUES, "engine")
    taken = (
        delete(UsageSumRow)
        .where(
            UsageSumRow.project_id == project_id,
            UsageSumRow.end_user == end_user,
            UsageSumRow.starts_at == func.any(literal([*times], ARRAY(Timestamp))),
        )
        .returning(*(getattr(UsageSumRow, name) for name in names))
        .cte("taken")
    )
    nobody: ColumnElement[str] = literal_column("''")
    columns: list[Any] = [nobody if name == "end_user" else taken.c[name] for name in names]
    await connection.execute(add_to_sums(insert(UsageSumRow).from_select(list(names), select(*columns))))


async def _erase_entries(connection: AsyncConnection, project_id: int, end_user: str, times: Sequence[datetime]) -> int:
    times_of = func.unnest(literal([*times], ARRAY(Timestamp))).table_valued("starts_at").render_derived("quarter_hour")
    starts_at = times_of.c.starts_at
    quarter_hour: ColumnElement[Any] = literal_column("interval '15 minutes'")
    within = and_(UsageEventRow.ended_at >= starts_at, UsageEventRow.ended_at < starts_at + quarter_hour)
    return (await connection.execute(_entries(project_id, end_user, within))).rowcount


def _entries(project_id: int, end_user: str, *conditions: ColumnElement[bool]) -> Any:
    return (
        update(UsageEventRow)
        .where(UsageEventRow.project_id == project_id, UsageEventRow.end_user == end_user, *conditions)
        .values(end_user=None)
    )
