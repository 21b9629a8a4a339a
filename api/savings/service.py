"""The savings report of a project."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from api.savings.report import Savings, compute
from api.savings.store import SavingsStore
from shared.config.models.loader import Registry
from shared.config.models.routes import Route


def _baseline(route: Route) -> str | None:
    return route.baseline or (route.models[-1] if route.models else None)


class SavingsService:
    """Reads reports, one at a time, so that they take no connections from submits."""

    def __init__(self, store: SavingsStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._one_at_a_time = asyncio.Lock()

    async def report(self, project_id: int, days: int) -> tuple[datetime, datetime, Savings]:
        """The start and end of a report on the last `days` days, and the report."""
        baselines = {route.name: baseline for route in self._registry.routes if (baseline := _baseline(route))}
        async with self._one_at_a_time:
            end = datetime.now(UTC)
            start = end - timedelta(days=days)
            return start, end, compute(await self._store.usage(project_id, start, baselines), baselines)
