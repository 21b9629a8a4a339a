"""SQL of the page of usage: the greatest of many sums."""

from __future__ import annotations

from typing import Any

from sqlalchemy import desc

from api.usage.store import UsageReportStore, UsageSelection, usage_statement


class TopUsageStore(UsageReportStore):
    """Reads which projects, end users or keys used most."""

    async def top(self, selection: UsageSelection, limit: int) -> list[Any]:
        """The rows of a report with the greatest charges, and of those without one the most requests."""
        statement = usage_statement(selection).order_by(None).order_by(desc("charge"), desc("requests")).limit(limit)
        return await self._read(statement, limit)
