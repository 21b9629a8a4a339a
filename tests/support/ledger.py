"""Prices and entries of the ledger in a test's database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.usage_tables import PriceRow

# Dollars per million tokens: of input, cached input, and output.
INPUT, CACHED, OUTPUT = Decimal(2), Decimal("0.5"), Decimal(10)


async def set_price(database: AsyncEngine, model: str = "m", **columns: Any) -> None:
    """Add a price that is in force since long ago, unless `columns` say otherwise."""
    rates = {"input_fresh": INPUT, "input_cache_read": CACHED, "output_text": OUTPUT}
    values = {"model": model, "source": "admin", **rates, **columns}
    if "valid_from" not in values:
        values["valid_from"] = text("'2020-01-01'::timestamptz")
    async with database.begin() as connection:
        await connection.execute(insert(PriceRow).values(values))


async def ledger(database: AsyncEngine, job_id: str | None = None) -> list[Row[Any]]:
    """The entries of a job, or of all, in the order of jobs and attempts."""
    query = "SELECT * FROM usage_events WHERE job_id = :id OR :id IS NULL ORDER BY job_id, attempt, correction"
    async with database.connect() as connection:
        return list(await connection.execute(text(query.replace(":id IS", "CAST(:id AS text) IS")), {"id": job_id}))


def dollars(**tokens: Any) -> Decimal:
    """What these tokens cost at the price that `set_price` sets by default."""
    rates = {"fresh": INPUT, "cached": CACHED, "output": OUTPUT}
    return sum((rates[name] * count for name, count in tokens.items()), Decimal(0)) / 1_000_000


def check_entries(entries: Sequence[Mapping[str, Any]], attempts: Sequence[Mapping[str, Any]]) -> None:
    """Check that each attempt of an ended job has an entry with its output tokens, of which the last one is final."""
    assert [entry["attempt"] for entry in entries] == [attempt["number"] for attempt in attempts]
    assert [entry["outcome"] for entry in entries] == [attempt["outcome"] for attempt in attempts]
    assert [entry["output_text"] for entry in entries] == [attempt["tokens"] for attempt in attempts]
    assert [entry["final"] for entry in entries] == [False] * (len(entries) - 1) + [True] * bool(entries)
