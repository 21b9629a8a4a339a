"""SQL of the page of limits: budgets with their current windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, or_, select, true

from shared.postgres.store import Store
from shared.postgres.tables import ApiKeyRow, ProjectRow
from shared.postgres.usage_tables import BudgetRow, BudgetWindowRow

# Rows that the page has room for. Of a budget of each end user, the users that have used most of theirs.
MOST = 200
USERS = 5


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget and one of its current windows. Without a window, nothing was reserved in it yet.

    `window_user`: the end user whose window it is, of a budget that each of them has.
    """

    id: int
    project: str
    key: str | None
    end_user: str | None
    window_user: str
    period: str
    time_zone: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    ends_at: datetime | None
    hard: bool
    on_exceed: str


class BudgetStatesStore(Store):
    """Reads budgets."""

    async def budgets(self, project_id: int | None) -> Sequence[BudgetState]:
        """The budgets of a project, or of all (None), at most `MOST`."""
        used = BudgetWindowRow.spent + BudgetWindowRow.reserved
        current = (
            select(
                BudgetWindowRow.end_user.label("window_user"),
                BudgetWindowRow.spent,
                BudgetWindowRow.reserved,
                BudgetWindowRow.ends_at,
                used.label("used"),
            )
            .where(
                BudgetWindowRow.budget_id == BudgetRow.id,
                BudgetWindowRow.starts_at <= func.now(),
                or_(BudgetWindowRow.ends_at.is_(None), BudgetWindowRow.ends_at > func.now()),
            )
            .order_by(used.desc())
            .limit(USERS)
            .lateral("current")
        )
        statement = (
            select(
                BudgetRow.id,
                ProjectRow.name.label("project"),
                ApiKeyRow.name.label("key"),
                BudgetRow.end_user,
                func.coalesce(current.c.window_user, "").label("window_user"),
                BudgetRow.period,
                BudgetRow.time_zone,
                BudgetRow.limit_usd.label("limit"),
                func.coalesce(current.c.spent, 0).label("spent"),
                func.coalesce(current.c.reserved, 0).label("reserved"),
                current.c.ends_at,
                BudgetRow.hard,
                BudgetRow.on_exceed,
            )
            .join(ProjectRow, ProjectRow.id == BudgetRow.project_id)
            .outerjoin(ApiKeyRow, ApiKeyRow.id == BudgetRow.key_id)
            .outerjoin(current, true())
            .order_by(ProjectRow.name, BudgetRow.id, current.c.used.desc())
            .limit(MOST)
        )
        if project_id is not None:
            statement = statement.where(BudgetRow.project_id == project_id)
        return await self._all(statement, lambda row: BudgetState(**row._asdict()))
