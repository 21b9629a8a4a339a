"""Which reports are read at the same time."""

from __future__ import annotations

import asyncio
import gc
from datetime import date
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest

from api.usage import service as module
from api.usage.periods import Periods
from api.usage.report import Report
from api.usage.service import UsageService
from api.usage.store import UsageFilters, UsageSelection
from shared.domain.errors import Unavailable

PERIODS = Periods.whole(date(2025, 11, 1), date(2025, 12, 1), ZoneInfo("UTC"))


class Store:
    """A store that reads no report before it is released."""

    def __init__(self) -> None:
        self.started = asyncio.Queue[UsageSelection]()
        self.released = asyncio.Event()

    async def all_rows(self, selection: UsageSelection) -> list[Any]:
        self.started.put_nowait(selection)
        await self.released.wait()
        return []

    async def project_names(self, ids: object) -> dict[int, str]:
        return {}


async def test_a_projects_reports_do_not_keep_others_from_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.05)
    store = Store()
    service = UsageService(cast(Any, store), cast(Any, None))

    async def report(project: int | None) -> Report:
        filters = UsageFilters(project_ids=None if project is None else {project})
        return await service.report(UsageSelection(PERIODS, filters))

    reading = [asyncio.create_task(report(1))]
    await asyncio.wait_for(store.started.get(), 10)
    with pytest.raises(Unavailable):
        await report(1)
    reading.append(asyncio.create_task(report(2)))
    await asyncio.wait_for(store.started.get(), 10)
    with pytest.raises(Unavailable):  # there are two already
        await report(None)
    store.released.set()
    await asyncio.wait_for(asyncio.gather(*reading), 10)
    for project in (1, 2, None):
        await report(project)
    gc.collect()  # the errors refer to them
    assert len(service._locks) == 0, "it does not grow with the number of projects"
