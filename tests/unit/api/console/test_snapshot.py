"""The overview's numbers are read once for all who look at it, also while the database hangs."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from api.console.data.overview import Charts, Live
from api.console.data.overview_store import OverviewStore
from api.console.overview.snapshot import Snapshots
from api.console.overview.store import ModelTimesStore
from shared.config.models.loader import Registry
from shared.domain.errors import Unavailable

CHARTS, LIVE = cast(Charts, object()), cast(Live, object())


class Database:
    """A store whose reads of charts hang until `answer` is set; `error`: how they end then."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.error: Exception | None = None
        self.reads = 0

    async def charts(self, *_: Any) -> Any:
        self.reads += 1
        self.asked.set()
        await self.answer.wait()
        if self.error is not None:
            raise self.error
        return CHARTS

    async def live(self, *_: Any) -> Any:
        return LIVE

    async def first_tokens(self, *_: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def snapshots(database: Database) -> Snapshots:
    return Snapshots(cast(OverviewStore, database), cast(ModelTimesStore, database), Registry({}))


async def test_readers_share_an_attempt_and_its_failure(database: Database, snapshots: Snapshots) -> None:
    database.error = Unavailable()
    readers = [asyncio.create_task(snapshots.get("1h")) for _ in range(20)]
    await database.asked.wait()
    database.answer.set()
    results = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert database.reads == 1, "one timeout for all, not one after the other"
    database.error = None
    assert (await snapshots.get("1h")).live is LIVE, "the next reader tries again"
    assert database.reads == 2


async def test_a_reader_that_leaves_does_not_end_the_attempt_of_the_others(
    database: Database, snapshots: Snapshots
) -> None:
    first, second = (asyncio.create_task(snapshots.get("1h")) for _ in range(2))
    await database.asked.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    database.answer.set()
    assert (await second).charts is CHARTS
    assert database.reads == 1
