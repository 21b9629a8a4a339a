"""SQL about budgets and their windows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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
    insert,
    literal_column,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.budgets import EACH_END_USER, BudgetScope, OnExceed, Period, Window
from shared.domain.job import JobStatus
from shared.domain.webhook_events import EventType
from shared.postgres.audit_store import record
from shared.postgres.budgets import move_to_spent
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.job_conditions import HAS_RUN
from shared.postgres.price_store import StoredPrice, prices_in_force
from shared.postgres.store import Records, Store, seconds
from shared.postgres.tables import ApiKeyRow, JobRow, ProjectRow, Timestamp
from shared.postgres.usage_tables import BudgetReservationRow, BudgetRow, BudgetWindowRow, UsageEventRow
from shared.postgres.webhook_outbox import insert_event

# The reservations of ended jobs that one statement releases.
RELEASE_LIMIT = 1000
_ZERO: Any = literal_column("0")
_ONE: Any = literal_column("1")
_FAILED = literal_column(f"'{JobStatus.FAILED.value}'", Text)


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget. `end_user`: as in `BudgetRow`."""

    id: int
    project_id: int
    project: str
    key_id: int | None
    end_user: str | None
    period: Period
    time_zone: str
    limit_usd: Decimal
    hard: bool
    on_exceed: OnExceed
    alert_at: tuple[Decimal, ...]
    created_at: datetime

    @property
    def scope(self) -> BudgetScope:
        if self.end_user is not None:
            return BudgetScope.END_USER
        return BudgetScope.PROJECT if self.key_id is None else BudgetScope.KEY

    @property
    def each_end_user(self) -> bool:
        """Whether each end user has a window of their own."""
        return self.end_user == EACH_END_USER


@dataclass(frozen=True, slots=True)
class NewBudget:
    """A budget to create."""

    project_id: int
    key_id: int | None
    end_user: str | None
    period: Period
    time_zone: str
    limit_usd: Decimal
    hard: bool
    on_exceed: OnExceed
    alert_at: tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent and is reserved in the current windows of a budget."""

    spent: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Rules:
    """All budgets and, if there are any, the prices in force, at the time `now` of the database."""

    budgets: Sequence[Budget]
    prices: Sequence[StoredPrice]
    now: datetime


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


_COLUMNS = (
    BudgetRow.id,
    BudgetRow.project_id,
    ProjectRow.name.label("project"),
    BudgetRow.key_id,
    BudgetRow.end_user,
    BudgetRow.period,
    BudgetRow.time_zone,
    BudgetRow.limit_usd,
    BudgetRow.hard,
    BudgetRow.on_exceed,
    BudgetRow.alert_at,
    BudgetRow.created_at,
)
_BUDGETS = select(*_COLUMNS).join(ProjectRow, ProjectRow.id == BudgetRow.project_id)
_KEYS = Records("window", budget_id=BigInteger, end_user=Text, starts_at=Timestamp, ends_at=Timestamp)


class BudgetStore(Store):
    """Budgets in PostgreSQL. The audit log has changes as those of the key `by`; None: of the command line."""

    async def rules(self) -> Rules:
        """Read all budgets, and the prices in force if there are any."""
        async with self._engine.connect() as connection:
            now = await connection.scalar(select(func.clock_timestamp()))
            assert now is not None
            budgets = [_budget(row) for row in await connection.execute(_BUDGETS.order_by(BudgetRow.id))]
            prices = await prices_in_force(connection) if budgets else []
        return Rules(budgets, prices, now)

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

    # What processes do about windows from time to time

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
            found = (await connection.execute(_BUDGETS.where(BudgetRow.id == row.budget_id))).first()
            if found is None:
                return None
            budget = _budget(found)
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

    # What operators do

    async def page(self, *, limit: int, after: int | None = None, project: str | None = None) -> list[Budget]:
        """Return one page of budgets, newest first; with `project`, those of the project with this name."""
        statement = _BUDGETS.order_by(BudgetRow.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(BudgetRow.id < after)
        if project is not None:
            statement = statement.where(ProjectRow.name == project)
        return await self._all(statement, _budget)

    async def get(self, budget_id: int) -> Budget | None:
        """Return a budget."""
        return await self._one(_BUDGETS.where(BudgetRow.id == budget_id), _budget)

    async def owner_of_key(self, key_id: int) -> int | None:
        """Return the project of a key; None if there is no such key."""
        return await self._one(select(ApiKeyRow.project_id).where(ApiKeyRow.id == key_id), lambda row: int(row[0]))

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

    async def create(self, new: NewBudget, *, by: int | None = None) -> Budget:
        """Create a budget. Jobs count in it from when all API processes know it: within some seconds."""
        async with transaction(self._engine) as connection:
            values = {
                "project_id": new.project_id,
                "key_id": new.key_id,
                "end_user": new.end_user,
                "period": new.period.value,
                "time_zone": new.time_zone,
                "limit_usd": new.limit_usd,
                "hard": new.hard,
                "on_exceed": new.on_exceed.value,
                "alert_at": list(new.alert_at),
            }
            budget_id = await connection.scalar(insert(BudgetRow).values(values).returning(BudgetRow.id))
            assert budget_id is not None
            await record(
                connection,
                key_id=by,
                action="budget.create",
                object_id=format_id(budget_id),
                project_id=new.project_id,
                after=values,
            )
        created = await self.get(budget_id)
        assert created is not None
        return created

    async def change(self, budget_id: int, changes: Mapping[str, Any], *, by: int | None = None) -> bool:
        """Change the columns of a budget, and report its thresholds again in windows that have not ended.

        False: there is no such budget.
        """
        async with transaction(self._engine) as connection:
            columns = [getattr(BudgetRow, name) for name in changes]
            locked = select(BudgetRow.project_id, *columns, limit_idle()).where(BudgetRow.id == budget_id)
            row = (await connection.execute(locked.with_for_update(key_share=True))).first()
            if row is None:
                return False
            before = {name: getattr(row, name) for name in changes}
            if before == changes:
                return True
            if {"limit_usd", "alert_at"} & changes.keys():
                window = BudgetWindowRow
                # A budget per end user may have any number of windows that have ended.
                has_ended = and_(window.ends_at.is_not(None), window.ends_at <= func.now())
                current = and_(window.budget_id == budget_id, not_(has_ended))
                windows = select(window.id).where(current).order_by(window.id)
                await connection.execute(windows.with_for_update(key_share=True))
                await connection.execute(update(window).where(current).values(alerted=0))
            await connection.execute(update(BudgetRow).where(BudgetRow.id == budget_id).values(dict(changes)))
            await record(
                connection,
                key_id=by,
                action="budget.change",
                object_id=format_id(budget_id),
                project_id=row.project_id,
                before=before,
                after=changes,
            )
            return True

    async def delete(self, budget_id: int, *, by: int | None = None) -> bool:
        """Delete a budget with its windows, and what jobs have reserved in them. False: there is no such budget."""
        async with transaction(self._engine) as connection:
            # In the order of `change`: the budget, then its windows.
            locked = select(BudgetRow.id, limit_idle()).where(BudgetRow.id == budget_id)
            await connection.execute(locked.with_for_update())
            budget = (await connection.execute(_BUDGETS.where(BudgetRow.id == budget_id))).first()
            if budget is None:
                return False
            windows = select(BudgetWindowRow.id).where(BudgetWindowRow.budget_id == budget_id)
            await connection.execute(windows.order_by(BudgetWindowRow.id).with_for_update())
            await connection.execute(delete(BudgetRow).where(BudgetRow.id == budget_id))
            await record(
                connection,
                key_id=by,
                action="budget.delete",
                object_id=format_id(budget_id),
                project_id=budget.project_id,
                before={name: value for name, value in budget._mapping.items() if name != "created_at"},
            )
            return True


def format_id(number: int) -> str:
    """The id of a budget as clients see it."""
    return f"budget_{number}"


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


def _budget(row: Any) -> Budget:
    return Budget(
        id=row.id,
        project_id=row.project_id,
        project=row.project,
        key_id=row.key_id,
        end_user=row.end_user,
        period=Period(row.period),
        time_zone=row.time_zone,
        limit_usd=row.limit_usd,
        hard=row.hard,
        on_exceed=OnExceed(row.on_exceed),
        alert_at=tuple(sorted(row.alert_at)),
        created_at=row.created_at,
    )
