"""Lines of batches become jobs as budgets have room for them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.batches.batch import Batch, BatchStatus
from shared.domain.budgets import Period
from shared.domain.job import JobStatus
from shared.domain.owner import Owner
from shared.postgres.budget_store import BudgetStore
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog
from tests.conftest import Servers
from tests.integration.api.batches.test_batches import CACHED, World, line, make_world
from tests.support.budgets import add_budget, reservations, windows
from tests.support.ledger import set_price

# Each line may have 10 output tokens, of 1 cent each; input is free.
LINE_USD = Decimal("0.1")


def limited(prompt: str, max_tokens: int = 10, **body: object) -> bytes:
    return line(prompt, max_tokens=max_tokens, **body)


@pytest.fixture
async def world(
    database: AsyncEngine, redis: Redis, logs: EventLog, store: JobStore, owner: Owner, tmp_path: Path, servers: Servers
) -> World:
    await set_price(database, "sim", input_fresh=0, output_text=10_000)
    return make_world(database, redis, logs, store, owner, tmp_path, servers)


async def begun(world: World, *lines: bytes) -> Batch:
    return await world.advance(await world.batch(content=b"".join(lines)), BatchStatus.IN_PROGRESS)


async def test_lines_wait_until_there_is_room(world: World, database: AsyncEngine) -> None:
    await add_budget(database, world.owner, 2 * LINE_USD, period=Period.TOTAL)
    batch = await begun(
        world, limited("one"), b"\n", limited("invalid", temperature=9), *map(limited, ("two", "three"))
    )
    batch = await world.step(batch)
    assert await world.lines(batch) == [1, 4], "an empty and an invalid line need no room"
    assert batch.submitted == 3
    batch = await world.step(batch)
    assert batch.submitted == 3, "there is no room yet"
    first, _ = await world.queued()
    await world.finish(await world.start(first))  # without an entry in the ledger, it costs nothing
    batch = await world.step(batch)
    assert (batch.submitted, await world.lines(batch)) == (4, [1, 4, 5])
    (window,) = await windows(database)
    assert window.reserved == 2 * LINE_USD
    await world.work()
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    assert (batch.completed, batch.failed) == (3, 1)
    assert await reservations(database) == []


async def test_a_batch_driver_that_hangs_holds_up_other_jobs_only_for_a_while(
    world: World, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has locked the windows of budgets."""
    limits: list[str] = []
    rollback = AsyncConnection.rollback

    async def observed(connection: AsyncConnection) -> None:
        limits.append(await connection.scalar(text("SHOW idle_in_transaction_session_timeout")))
        await rollback(connection)

    monkeypatch.setattr(AsyncConnection, "rollback", observed)
    await add_budget(database, world.owner, LINE_USD, period=Period.TOTAL)
    await world.step(await begun(world, limited("one"), limited("two")))
    assert limits == ["10s"], "there was no room for both"


async def test_the_rest_of_a_batch_that_expires_is_reported(world: World, database: AsyncEngine) -> None:
    await add_budget(database, world.owner, LINE_USD, period=Period.TOTAL)
    batch = await world.step(await begun(world, limited("one"), limited("two")))
    assert await world.lines(batch) == [1]
    await world.work()
    await BudgetStore(database).change(1, {"limit_usd": LINE_USD / 2})
    await world.sql("UPDATE budget_windows SET spent = 1")
    batch = await world.step(batch)
    assert batch.submitted == 1
    await world.expire(batch)
    batch = await world.advance(batch, BatchStatus.EXPIRED)
    output, errors = await world.results(batch)
    assert [item["custom_id"] for item in output] == ["one"]
    assert [item["error"]["code"] for item in errors] == ["batch_expired"]


async def test_a_line_that_costs_more_than_the_whole_budget_is_refused(world: World, database: AsyncEngine) -> None:
    """It does not keep the other lines waiting."""
    await add_budget(database, world.owner, LINE_USD, period=Period.TOTAL)
    batch = await world.step(await begun(world, limited("long", 11), limited("short")))
    assert (batch.submitted, await world.lines(batch)) == (2, [2])
    await world.work()
    batch = await world.advance(batch, BatchStatus.COMPLETED)
    _, (error,) = await world.results(batch)
    assert (error["custom_id"], error["response"]["status_code"]) == ("long", 429)
    body = error["response"]["body"]["error"]
    assert body["code"] == "insufficient_quota"
    assert "$0.11, more than the whole budget" in body["message"]


async def test_lines_that_the_cache_answers_need_no_room(world: World, database: AsyncEngine) -> None:
    earlier = await world.step(await begun(world, limited("one", **CACHED)))
    await world.work()
    await world.advance(earlier, BatchStatus.COMPLETED)
    await add_budget(database, world.owner, LINE_USD, period=Period.TOTAL)
    budgets = world.steps._admission._budgets
    assert budgets is not None
    await budgets.reload()
    batch = await world.step(await begun(world, limited("two"), limited("one", **CACHED), limited("three")))
    assert batch.submitted == 2
    assert [job.status for job in [await world.start(job_id) for job_id in await world.queued()]] == [
        JobStatus.IN_PROGRESS
    ]
    assert len(await reservations(database)) == 1
