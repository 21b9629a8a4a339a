"""The list of prices: those in force, and all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from api.admin.prices.store import Price, PriceListStore
from shared.postgres.usage_tables import PriceRow

NOW = datetime.now(UTC)


async def add(database: AsyncEngine, rate: str, *, days: int = 0, **more: Any) -> None:
    """Add a price that is valid from so many days on."""
    values = {"model": "m", "input_fresh": Decimal(rate), "source": "models.yaml", **more}
    async with database.connect() as connection:
        await connection.execute(insert(PriceRow).values(valid_from=NOW + timedelta(days=days), **values))


def rates(prices: list[Price]) -> list[str]:
    return [str(price.rates["input_fresh"]) for price in prices]


async def test_prices_in_force_and_others(database: AsyncEngine) -> None:
    await add(database, "1", days=-3)
    await add(database, "2", days=-1)
    await add(database, "3", days=2)
    await add(database, "4", days=-1, tier="batch")
    await add(database, "5", days=-1, from_input_tokens=200_000)
    await add(database, "6", days=-1, model="n")
    store = PriceListStore(database)
    assert rates(await store.page(limit=10)) == ["6", "5", "4", "2"], "the newest list of each model and tier"
    history = await store.page(limit=10, model="m", history=True)
    assert [(str(price.rates["input_fresh"]), price.in_force) for price in history] == [
        ("5", True), ("4", True), ("3", False), ("2", True), ("1", False)
    ]  # fmt: skip
    first = await store.page(limit=2)
    assert rates(await store.page(limit=2, after=first[-1].id)) == ["4", "2"]
    assert history[0].rates["output_text"] is None
