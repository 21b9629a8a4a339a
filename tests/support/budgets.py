"""Budgets in a test's database, and what is spent and reserved in their windows."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.budgets import OnExceed, Period, WindowReservation, window_at
from shared.domain.owner import Owner
from shared.postgres.budget_store import Budget, BudgetStore, NewBudget
from shared.postgres.budget_windows import BudgetWindowStore, WindowKey


async def add_budget(database: AsyncEngine, owner: Owner, limit_usd: Decimal | int | str, **changes: Any) -> Budget:
    """Create a hard budget per day of the owner's project."""
    values = {
        "project_id": owner.project_id,
        "key_id": None,
        "end_user": None,
        "period": Period.DAY,
        "time_zone": "UTC",
        "limit_usd": Decimal(limit_usd),
        "hard": True,
        "on_exceed": OnExceed.REJECT,
        "alert_at": (Decimal("0.8"), Decimal(1)),
    }
    return await BudgetStore(database).create(NewBudget(**{**values, **changes}))


async def reservation(database: AsyncEngine, budget: Budget, amount: Decimal | int | str) -> WindowReservation:
    """A reservation in the current window of a budget."""
    window = window_at(budget.period, ZoneInfo(budget.time_zone), datetime.now(UTC))
    (window_id,) = (await BudgetWindowStore(database).window_ids([WindowKey(budget.id, "", window)])).values()
    return WindowReservation(window_id, budget.id, Decimal(amount))


async def windows(database: AsyncEngine) -> list[Row[Any]]:
    """All windows, in the order of their ids."""
    async with database.connect() as connection:
        return list(await connection.execute(text("SELECT * FROM budget_windows ORDER BY id")))


async def reservations(database: AsyncEngine) -> list[Row[Any]]:
    """All reservations, in the order of the jobs."""
    query = "SELECT job_id, window_id, amount FROM budget_reservations ORDER BY job_id, window_id"
    async with database.connect() as connection:
        return list(await connection.execute(text(query)))


async def check_books(database: AsyncEngine) -> None:
    """Check that what is reserved is that of open jobs, and what is spent that which the ledger has charged ended ones.

    For budgets of projects whose charges all have a price.
    """
    query = text(
        """
        SELECT w.id, w.reserved, w.spent, w.spent + w.reserved <= b.limit_usd OR NOT b.hard AS within,
            coalesce((SELECT sum(r.amount) FROM budget_reservations r WHERE r.window_id = w.id), 0) AS held,
            coalesce((SELECT sum(e.charge) FROM usage_events e WHERE e.project_id = b.project_id), 0) AS charged
        FROM budget_windows w JOIN budgets b ON b.id = w.budget_id
        """
    )
    orphaned = text(
        """
        SELECT count(*) FROM budget_reservations r LEFT JOIN jobs j ON j.id = r.job_id
        WHERE j.id IS NULL OR j.finished_at IS NOT NULL
        """
    )
    async with database.connect() as connection:
        for row in await connection.execute(query):
            assert row.reserved == row.held
            assert row.spent == row.charged
            assert row.within
        assert await connection.scalar(orphaned) == 0
