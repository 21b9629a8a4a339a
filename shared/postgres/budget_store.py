"""SQL about budgets: reads them, and makes the changes of operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    and_,
    delete,
    func,
    insert,
    not_,
    select,
    update,
)

from shared.domain.budgets import EACH_END_USER, BudgetScope, OnExceed, Period
from shared.postgres.audit_store import record
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.price_store import StoredPrice, prices_in_force
from shared.postgres.store import Store
from shared.postgres.tables import ApiKeyRow, ProjectRow
from shared.postgres.usage_tables import BudgetRow, BudgetWindowRow


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
class Rules:
    """All budgets and, if there are any, the prices in force, at the time `now` of the database."""

    budgets: Sequence[Budget]
    prices: Sequence[StoredPrice]
    now: datetime


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
# The statement that reads all budgets.
BUDGETS = select(*_COLUMNS).join(ProjectRow, ProjectRow.id == BudgetRow.project_id)


class BudgetStore(Store):
    """Budgets in PostgreSQL. The audit log has changes as those of the key `by`; None: of the command line."""

    async def rules(self) -> Rules:
        """Read all budgets, and the prices in force if there are any."""
        async with self._engine.connect() as connection:
            now = await connection.scalar(select(func.clock_timestamp()))
            assert now is not None
            budgets = [budget_of(row) for row in await connection.execute(BUDGETS.order_by(BudgetRow.id))]
            prices = await prices_in_force(connection) if budgets else []
        return Rules(budgets, prices, now)

    async def page(self, *, limit: int, after: int | None = None, project: str | None = None) -> list[Budget]:
        """Return one page of budgets, newest first; with `project`, those of the project with this name."""
        statement = BUDGETS.order_by(BudgetRow.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(BudgetRow.id < after)
        if project is not None:
            statement = statement.where(ProjectRow.name == project)
        return await self._all(statement, budget_of)

    async def get(self, budget_id: int) -> Budget | None:
        """Return a budget."""
        return await self._one(BUDGETS.where(BudgetRow.id == budget_id), budget_of)

    async def owner_of_key(self, key_id: int) -> int | None:
        """Return the project of a key; None if there is no such key."""
        return await self._one(select(ApiKeyRow.project_id).where(ApiKeyRow.id == key_id), lambda row: int(row[0]))

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
            budget = (await connection.execute(BUDGETS.where(BudgetRow.id == budget_id))).first()
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


def budget_of(row: Any) -> Budget:
    """The budget in a row of `BUDGETS`."""
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
