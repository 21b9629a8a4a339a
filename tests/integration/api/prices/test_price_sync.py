"""The table of prices follows what is declared: rows are added once, and never changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.prices.price_sync import PriceSync
from shared.config.models.loader import ModelSpec, Registry
from shared.domain.prices import NOT_PRICED, PriceList, Rates, Tier
from shared.postgres.price_store import ADMIN, EVER, DeclaredPrices, PriceStore, StoredPrice
from shared.postgres.usage_tables import PriceRow
from shared.runtime.aio import cancel_and_wait
from tests.support.waiting import eventually

JANUARY, MARCH = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)


def price(rate: str, valid_from: datetime | None = None, tier: Tier = "default", long: str | None = None) -> PriceList:
    """A price list with one rate for input, and another one for inputs of 100 tokens or more."""
    steps: tuple[tuple[int, Rates], ...] = ((0, Rates(input_fresh=Decimal(rate), output_text=Decimal(1))),)
    if long is not None:
        steps = (*steps, (100, Rates(input_fresh=Decimal(long), output_text=Decimal(1))))
    return PriceList(tier, steps, valid_from)


async def sync(database: AsyncEngine, *lists: PriceList) -> list[StoredPrice]:
    """Declare the prices of the model `m`; doing it again changes nothing."""
    store = PriceStore(database)
    declared = {"m": DeclaredPrices("models.yaml", lists)}
    added = await store.sync(declared)
    assert await store.sync(declared) == []
    return added


async def in_force(database: AsyncEngine) -> list[Any]:
    prices = await PriceStore(database).prices()
    return [(one.price_list.tier, [rates.input_fresh for _, rates in one.price_list.steps]) for one in prices]


async def history(database: AsyncEngine) -> list[Any]:
    prices = await PriceStore(database).prices(model="m", history=True)
    return [(one.valid_from, one.price_list.steps[0][1].input_fresh) for one in prices]


async def test_processes_that_start_together_add_a_price_once(database: AsyncEngine) -> None:
    lists = [price("1", long="2"), price("0.5", JANUARY, "flex")]
    declared = {name: DeclaredPrices("models.yaml", lists) for name in ("m", "n")}
    added = await asyncio.gather(*(PriceStore(database).sync(declared) for _ in range(4)))
    assert sorted(map(len, added)) == [0, 0, 0, 4]
    async with database.connect() as connection:
        rows = (await connection.execute(select(PriceRow).order_by(PriceRow.id))).all()
    assert [(row.model, row.tier, row.from_input_tokens, row.valid_from, row.input_fresh) for row in rows] == [
        (model, tier, start, valid_from, Decimal(rate))
        for model in ("m", "n")
        for tier, start, valid_from, rate in (
            ("default", 0, EVER, "1"),
            ("default", 100, EVER, "2"),
            ("flex", 0, JANUARY, "0.5"),
        )
    ]
    assert all(row.input_cache_read is None and row.output_text == 1 and row.source == "models.yaml" for row in rows)


async def test_a_changed_price_is_valid_from_now_on(database: AsyncEngine) -> None:
    await sync(database, price("1", long="2"))
    before = datetime.now(UTC)
    (added,) = await sync(database, price("1"))  # long inputs cost the same now
    assert before <= added.valid_from <= datetime.now(UTC)
    assert await in_force(database) == [("default", [1])]
    assert await history(database) == [(EVER, 1), (added.valid_from, 1)]


async def test_a_price_with_a_date_is_valid_from_that_date(database: AsyncEngine) -> None:
    """The price before it stays, whether it is still declared or not."""
    await sync(database, price("1"))
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    (added,) = await sync(database, price("2", tomorrow))
    assert added.valid_from == tomorrow
    assert await in_force(database) == [("default", [1])]
    assert await sync(database, price("1"), price("2", tomorrow)) == []
    # It can be withdrawn.
    (withdrawn,) = await sync(database, price("1"))
    assert timedelta(0) < withdrawn.valid_from - tomorrow < timedelta(milliseconds=1)


async def test_a_price_that_changes_without_a_new_date_is_corrected_for_that_date(database: AsyncEngine) -> None:
    await sync(database, price("1", JANUARY))
    (first,) = await sync(database, price("2", JANUARY))
    (second,) = await sync(database, price("3", JANUARY))
    assert await in_force(database) == [("default", [3])]
    assert await history(database) == [(JANUARY, 1), (first.valid_from, 2), (second.valid_from, 3)]
    assert second.valid_from - JANUARY < timedelta(milliseconds=1)


async def test_an_earlier_date_brings_a_price_into_force_as_well(database: AsyncEngine) -> None:
    """The price in between held until now."""
    await sync(database, price("1"), price("2", MARCH))
    before = datetime.now(UTC)
    past, now = await sync(database, price("3", JANUARY))
    assert past.valid_from == JANUARY
    assert now.valid_from >= before
    assert [rate for _, rate in await history(database)] == [1, 3, 2, 3]


async def test_all_prices_of_the_past_are_known(database: AsyncEngine) -> None:
    lists = [price("1"), price("2", JANUARY), price("3", MARCH)]
    assert len(await sync(database, *lists)) == 3
    assert await history(database) == [(EVER, 1), (JANUARY, 2), (MARCH, 3)]
    assert await sync(database, *lists[1:]) == []


async def test_a_price_that_is_not_declared_any_more_ends(database: AsyncEngine) -> None:
    await sync(database, price("1"), price("2", tier="flex"))
    (added,) = await sync(database, price("1"))
    assert added.price_list == replace(added.price_list, tier="flex", steps=NOT_PRICED)
    assert await in_force(database) == [("default", [1]), ("flex", [None])]
    await sync(database)
    assert await in_force(database) == [("default", [None]), ("flex", [None])]
    await sync(database, price("1"))
    assert await in_force(database) == [("default", [1]), ("flex", [None])]


async def test_models_that_are_not_declared_keep_their_prices(database: AsyncEngine) -> None:
    await sync(database, price("1"))
    await PriceStore(database).sync({"n": DeclaredPrices("models.yaml", [price("2")])})
    assert await in_force(database) == [("default", [1]), ("default", [2])]


async def test_a_price_of_an_operator_holds_until_the_declared_one_changes(database: AsyncEngine) -> None:
    await sync(database, price("1"))
    async with database.connect() as connection:
        values = {"model": "m", "input_fresh": 7, "output_text": 7, "source": ADMIN}
        await connection.execute(insert(PriceRow).values(values))
    assert await sync(database, price("1")) == []
    assert await in_force(database) == [("default", [7])]
    assert len(await sync(database, price("2"))) == 1
    assert await in_force(database) == [("default", [2])]


async def test_a_list_that_cannot_be_added_adds_nothing(database: AsyncEngine) -> None:
    with pytest.raises(DBAPIError):
        await sync(database, price("1"), price("-1", tier="flex"))
    assert await in_force(database) == []


def models(rate: int) -> dict[str, Any]:
    entry = {"name": "m", "engine": "simulated", "price": {"input": rate, "output": rate}}
    return {"m": TypeAdapter(ModelSpec).validate_python(entry)}


async def test_prices_follow_the_file_of_a_process(database: AsyncEngine) -> None:
    """At its start, when the file is read again, and not at other times."""
    registry = Registry(models(1))
    price_sync = PriceSync(registry, PriceStore(database))
    task = asyncio.create_task(price_sync.run())

    async def rate_is(rate: int) -> bool | None:
        return await in_force(database) == [("default", [rate])] or None

    await eventually(lambda: rate_is(1), "the price of the start")
    registry.replace(models(2))
    price_sync.request()
    await eventually(lambda: rate_is(2), "the price of the reload")
    await cancel_and_wait(task)
    assert len(await history(database)) == 2
