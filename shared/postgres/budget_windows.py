"""SQL about the windows of budgets: what jobs have spent and reserved in them, and what is to be reported of that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.budgets import Window
from shared.domain.job import JobStatus
from shared.domain.webhook_events import EventType
from shared.postgres.budget_store import BUDGETS, Budget, budget_of, format_id
from shared.postgres.budgets import move_to_spent
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.job_conditions import HAS_RUN
from shared.postgres.store import Records, Store, seconds
from shared.postgres.tables import JobRow, Timestamp
from shared.postgres.usage_tables import BudgetReservationRow, BudgetRow, BudgetWindowRow, UsageEventRow
from shared.postgres.webhook_outbox import insert_event

# The reservations of ended jobs that one statement releases.
RELEASE_LIMIT = 1000
_ZERO: Any = literal_column("0")
_ONE: Any = literal_column("1")
_FAILED = literal_column(f"'{JobStatus.FAILED.value}'", Text)


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent and is reserved in the current windows of a budget."""

    spent: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class WindowKey:
    """What identifies a window. `end_user` is empty if the budget is not per end user, or the job names none."""

    budget_id: int
    end_user: str
    window: Window


@dataclass(frozen=True, slots=True)
class Alert:
    """Thresholds of a budget that a window has reached and that were not reported before."""

    budget: Budget
    end_user: str
    spent: Decimal
    thresholds: tuple[Decimal, ...]


_KEYS = Records("window", budget_id=BigInteger, end_user=Text, starts_at=Timestamp, ends_at=Timestamp)


class BudgetWindowStore(Store):
    """The windows of budgets, and what jobs have spent and reserved in them."""

    async def window_ids(self, keys: Collection[WindowKey]) -> dict[WindowKey, int]:
        """Return the ids of windows, which are created if they are missing; not those of budgets that were deleted."""
        found = await self._existing(keys)
        missing = [key for key in keys if key not in found]
        if not missing:
            return found
        # In the same order in all processes, which could otherwise wait for each other.
        records = [_record(key) for key in sorted(missing, key=lambda key: (key.budget_id, key.end_user))]
        columns = ["budget_id", "end_user", "starts_at", "ends_at"]
        rows = (
            select(*(getattr(_KEYS, name) for name in columns))
            .where(_KEYS.budget_id == BudgetRow.id)
            .order_by(_KEYS.budget_id, _KEYS.end_user)
            .with_for_update(read=True, key_share=True, of=BudgetRow)
        )
        statement = upsert(BudgetWindowRow).from_select(columns, rows).on_conflict_do_nothing()
        async with self._engine.connect() as connection:
            await connection.execute(statement, _KEYS.parameters(records))
        return found | await self._existing(missing)

    async def _existing(self, keys: Collection[WindowKey]) -> dict[WindowKey, int]:
        row = BudgetWindowRow
        statement = select(row.id, row.budget_id, row.end_user, row.starts_at).where(
            row.budget_id == _KEYS.budget_id, row.end_user == _KEYS.end_user, row.starts_at == _KEYS.starts_at
        )
        by_columns = {(key.budget_id, key.end_user, key.window.starts_at): key for key in keys}
        async with self._engine.connect() as connection:
            rows = await connection.execute(statement, _KEYS.parameters([_record(key) for key in keys]))
            return {by_columns[row.budget_id, row.end_user, row.starts_at]: row.id for row in rows}

    async def take_alerts(self, windows: Collection[int]) -> list[Alert]:
        """Return the thresholds that these windows have reached, and note that they are reported: each is returned
        once, whichever process asks."""
        reached = func.unnest(BudgetRow.alert_at).table_valued("share").render_derived("threshold")
        due = (
            select(BudgetWindowRow.id)
            .join(BudgetRow, BudgetRow.id == BudgetWindowRow.budget_id)
            .join(reached, true())
            .where(
                BudgetWindowRow.id == func.any(bindparam("windows", list(windows), type_=ARRAY(BigInteger))),
                reached.c.share > BudgetWindowRow.alerted,
                BudgetWindowRow.spent >= reached.c.share * BudgetRow.limit_usd,
            )
            .distinct()
        )
        async with self._engine.connect() as connection:
            ids = list((await connection.execute(due)).scalars())
        taken = [await self._take_alert(window_id) for window_id in ids]
        return [alert for alert in taken if alert is not None]

    async def _take_alert(self, window_id: int) -> Alert | None:
        async with transaction(self._engine) as connection:
            window = BudgetWindowRow
            columns = (window.budget_id, window.end_user, window.spent, window.alerted)
            locked = select(*columns, limit_idle()).where(window.id == window_id)
            row = (await connection.execute(locked.with_for_update(key_share=True))).first()
            if row is None:
                return None
            found = (await connection.execute(BUDGETS.where(BudgetRow.id == row.budget_id))).first()
            if found is None:
                return None
            budget = budget_of(found)
            thresholds = tuple(
                share for share in budget.alert_at if share > row.alerted and row.spent >= share * budget.limit_usd
            )
            if not thresholds:
                return None
            await connection.execute(update(window).where(window.id == window_id).values(alerted=max(thresholds)))
            alert = Alert(budget, row.end_user, row.spent, thresholds)
            await _insert_events(connection, window_id, alert)
        return alert

    async def busy(self, windows: Collection[int]) -> set[int]:
        """Return those of the windows in which jobs have reserved."""
        statement = select(BudgetWindowRow.id).where(
            BudgetWindowRow.id == func.any(bindparam("windows", list(windows), type_=ARRAY(BigInteger))),
            BudgetReservationRow.window_id == BudgetWindowRow.id,
        )
        async with self._engine.connect() as connection:
            return set((await connection.execute(statement.distinct())).scalars())

    async def reserved_windows(self) -> set[int]:
        """Return the windows in which jobs have reserved."""
        async with self._engine.connect() as connection:
            return set((await connection.execute(select(BudgetReservationRow.window_id).distinct())).scalars())

    async def release_ended(self) -> int:
        """Release what jobs have reserved that have ended or do not exist. Returns the number of reservations.

        The statement that ends a job releases what it has reserved, unless a process of an older version ran it. Then
        the job counts as what the ledger has charged it; if that is not known, as what it has reserved, unless it has
        failed or never run.
        """
        row = BudgetReservationRow
        # NULL if the job does not exist.
        is_charged = and_(HAS_RUN, JobRow.status != _FAILED)
        stale = (
            select(row.job_id, row.window_id, is_charged.label("is_charged"))
            .outerjoin(JobRow, JobRow.id == row.job_id)
            .where(or_(JobRow.id.is_(None), JobRow.finished_at.is_not(None)))
            .limit(RELEASE_LIMIT)
            .cte("stale")
        )
        locked = (
            select(BudgetWindowRow.id)
            .where(BudgetWindowRow.id.in_(select(stale.c.window_id)))
            .order_by(BudgetWindowRow.id)
            .with_for_update(key_share=True)
            .cte("windows_locked")
        )
        released = (
            delete(row)
            .where(
                row.job_id == stale.c.job_id,
                row.window_id == stale.c.window_id,
                select(func.count(locked.c.id)).scalar_subquery() >= _ZERO,  # after all windows are locked
            )
            .returning(row.job_id, row.window_id, row.amount)
            .cte("released")
        )
        entry = UsageEventRow
        final = and_(entry.job_id == released.c.job_id, entry.final, entry.correction == _ZERO)
        unknown = case((stale.c.is_charged, released.c.amount), else_=_ZERO)
        of_job = and_(stale.c.job_id == released.c.job_id, stale.c.window_id == released.c.window_id)
        settled = (
            select(released.c.window_id, released.c.amount, func.coalesce(entry.charge, unknown).label("spent"))
            .join_from(released, stale, of_job)
            .outerjoin(entry, final)
            .cte("settled")
        )
        statement = select(func.count()).select_from(released).add_cte(move_to_spent(settled))
        async with self._engine.connect() as connection:
            return int(await connection.scalar(statement) or 0)

    async def delete_past(self, kept_s: float, limit: int) -> int:
        """Delete up to `limit` windows that ended more than `kept_s` seconds ago, except those in which jobs have
        reserved. Returns their number."""
        window = BudgetWindowRow
        is_reserved = select(BudgetReservationRow.job_id).where(BudgetReservationRow.window_id == window.id).limit(_ONE)
        past = (
            select(window.id)
            .where(window.ends_at < func.now() - seconds(kept_s), is_reserved.scalar_subquery().is_(None))
            .order_by(window.ends_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(delete(window).where(window.id.in_(past)))).rowcount

    async def spending(self, windows: Mapping[int, Window], *, end_user: str | None = None) -> dict[int, Spending]:
        """What was spent and is reserved in these windows, by the id of the budget.

        Of a budget per end user, in the windows of all of them, or in that of `end_user`.
        """
        row = BudgetWindowRow
        statement = (
            select(row.budget_id, func.sum(row.spent).label("spent"), func.sum(row.reserved).label("reserved"))
            .where(row.budget_id == _KEYS.budget_id, row.starts_at == _KEYS.starts_at)
            .group_by(row.budget_id)
        )
        if end_user is not None:
            statement = statement.where(row.end_user == end_user)
        records = [_record(WindowKey(budget_id, "", window)) for budget_id, window in windows.items()]
        async with self._engine.connect() as connection:
            rows = await connection.execute(statement, _KEYS.parameters(records))
            return {row.budget_id: Spending(row.spent, row.reserved) for row in rows}


def _record(key: WindowKey) -> dict[str, Any]:
    return {
        "budget_id": key.budget_id,
        "end_user": key.end_user,
        "starts_at": key.window.starts_at,
        "ends_at": key.window.ends_at,
    }


async def _insert_events(connection: AsyncConnection, window_id: int, alert: Alert) -> None:
    """Insert the deliveries of webhooks that report these thresholds."""
    budget = alert.budget
    for share in alert.thresholds:
        await insert_event(
            connection,
            budget.project_id,
            EventType.BUDGET_EXCEEDED if share >= 1 else EventType.BUDGET_THRESHOLD,
            format_id(budget.id),
            data={
                "project": budget.project,
                "end_user": alert.end_user or None,
                "period": budget.period.value,
                "threshold": float(share),
                "limit_usd": float(budget.limit_usd),
                "spend_usd": float(alert.spent),
            },
            # A threshold is reported again in the next window, and after the limit was changed.
            occurrence=f"{window_id}:{share:f}:{budget.limit_usd:f}",
        )
