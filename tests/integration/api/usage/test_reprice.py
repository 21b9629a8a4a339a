"""Entries of the ledger are priced again by corrections, which are appended once."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.usage.__main__ import main
from api.usage.reprice import reprice
from shared.domain.prices import PriceList, Rates
from shared.postgres.price_store import DeclaredPrices, PriceStore
from shared.postgres.repricing import Repricing
from shared.postgres.usage_tables import TOKEN_COUNTS, UsageEventRow

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MORNING = NOON - timedelta(hours=6)
# Amounts are compared with integers.
Amounts = Any


async def add(database: AsyncEngine, job: str, *, amounts: tuple[str, str] | None = None, **columns: Any) -> None:
    """Add the entry of a job that ended at noon, with a million input and a million output tokens."""
    counts = {"input_fresh": 1_000_000, "output_text": 1_000_000} | {
        name: columns.pop(name) for name in TOKEN_COUNTS if name in columns
    }
    cost, charge = (None, None) if amounts is None else map(Decimal, amounts)
    values = {
        "job_id": job, "attempt": 1, "ended_at": NOON, "kind": "generate", "project_id": 1, "key_id": 2,
        "requested_model": "route", "model": "m", "outcome": "completed", "final": True, "source": "engine",
        "cost": cost, "charge": charge,
        **dict.fromkeys(TOKEN_COUNTS, 0), **counts, "total_tokens": sum(counts.values()), **columns,
    }  # fmt: skip
    async with database.connect() as connection:
        await connection.execute(insert(UsageEventRow).values(values))


async def set_price(
    database: AsyncEngine, rate: int, valid_from: datetime | None = None, *, model: str = "m", **rates: int
) -> None:
    """Let a model cost so much for a million input tokens, and twice as much for output."""
    found = {"input_fresh": rate, "output_text": 2 * rate} | rates
    lists = [PriceList("default", ((0, Rates(**{name: Decimal(one) for name, one in found.items()})),), valid_from)]
    await PriceStore(database).sync({model: DeclaredPrices("models.yaml", lists)})


async def ledger(database: AsyncEngine) -> list[Any]:
    order = (UsageEventRow.job_id, UsageEventRow.attempt, UsageEventRow.correction)
    async with database.connect() as connection:
        return list((await connection.execute(select(UsageEventRow).order_by(*order))).all())


async def amounts(database: AsyncEngine) -> dict[str, Amounts]:
    """The cost and the charge of each job: of its entries and corrections together."""
    statement = "SELECT job_id, sum(cost), sum(charge) FROM usage_events GROUP BY job_id"
    async with database.connect() as connection:
        return {job: (cost, charge) for job, cost, charge in await connection.execute(text(statement))}


async def run(database: AsyncEngine, since: datetime = MORNING, **options: Any) -> Any:
    """Price the entries again; once more would change nothing."""
    store = Repricing(database)
    done = await reprice(store, since, **options)
    assert done.checked == 0 or options.get("dry_run") or (await reprice(store, since, **options)).corrected == 0
    return done


async def test_an_entry_that_had_no_price_gets_its_amounts(database: AsyncEngine) -> None:
    await add(
        database, "job_1", engine="vllm", end_user="u", batch_id="b", conversation="c", outcome="failed", charged={}
    )
    await set_price(database, 3)
    done = await run(database)
    assert (done.checked, done.corrected, done.cost, done.charge, done.unpriced) == (1, 1, 9, 0, 0)
    entry, correction = await ledger(database)
    assert (entry.cost, entry.charge, entry.price_id) == (None, None, None)
    assert (correction.correction, correction.cost, correction.charge) == (1, 9, 0)
    assert correction.price_id is not None
    assert correction.total_tokens == 0
    assert correction.charged is None
    assert correction.written_by > entry.written_by, "the sums find it"
    same = (
        "job_id", "attempt", "ended_at", "kind", "project_id", "key_id", "end_user", "conversation", "requested_model",
        "model", "engine", "service_tier", "batch_id", "outcome", "final", "source",
    )  # fmt: skip
    assert [getattr(correction, name) for name in same] == [getattr(entry, name) for name in same]


async def test_each_change_of_a_past_price_is_one_correction(database: AsyncEngine) -> None:
    """An entry has the price that was in force when it ended, of those that are known today."""
    await set_price(database, 1, MORNING)
    await add(database, "job_1", amounts=("3", "3"))
    assert (await run(database)).corrected == 0
    await set_price(database, 2, MORNING)
    assert (await run(database)).cost == 3
    await set_price(database, 1, MORNING)
    assert (await run(database)).charge == -3
    assert [(row.correction, row.cost) for row in await ledger(database)] == [(0, 3), (1, 3), (2, -3)]
    # One from after the end of the entry does not concern it.
    await set_price(database, 5, NOON + timedelta(seconds=1))
    assert (await run(database)).corrected == 0
    assert await amounts(database) == {"job_1": (3, 3)}


async def test_only_the_selected_entries_are_corrected(database: AsyncEngine) -> None:
    await add(database, "job_1", ended_at=MORNING)
    await add(database, "job_2")
    await add(database, "job_3", model="n")
    await add(database, "job_4", attempt=0, outcome="answered", input_fresh=0, output_text=0, amounts=("0", "0"))
    await set_price(database, 1)
    await set_price(database, 10, model="n")
    done = await run(database, NOON, model="m")
    assert (done.checked, done.corrected) == (1, 1)
    assert await amounts(database) == {
        "job_1": (None, None),
        "job_2": (3, 3),
        "job_3": (None, None),
        "job_4": (0, 0),
    }


async def test_a_charge_is_for_what_was_charged(database: AsyncEngine) -> None:
    await add(database, "job_1", charged={"input_fresh": 500_000})
    await add(database, "job_2", attempt=1, final=False, outcome="worker_lost", charged={})
    await set_price(database, 2)
    await run(database)
    assert await amounts(database) == {"job_1": (6, 1), "job_2": (6, 0)}


async def test_a_part_without_a_price_stays_unknown(database: AsyncEngine) -> None:
    """The charge has no cached input, which is not priced."""
    await add(database, "job_1", input_cache_read=1_000_000, charged={"input_fresh": 1_000_000})
    await set_price(database, 2)
    done = await run(database)
    assert (done.corrected, done.unpriced, done.cost, done.charge) == (1, 1, 0, 2)
    assert await amounts(database) == {"job_1": (None, 2)}
    await set_price(database, 2, input_cache_read=1, valid_from=MORNING)
    done = await run(database)
    assert (done.corrected, done.unpriced, done.cost, done.charge) == (1, 0, 7, 0)
    assert await amounts(database) == {"job_1": (7, 2)}


async def test_a_price_that_has_gone_changes_nothing(database: AsyncEngine) -> None:
    await add(database, "job_1", amounts=("3", "3"))
    assert (await run(database)).corrected == 0
    assert await amounts(database) == {"job_1": (3, 3)}


async def test_portions_and_projects(database: AsyncEngine) -> None:
    """Entries of one moment may be in several portions."""
    for number in range(7):
        await add(database, f"job_{number}", project_id=1 + 10 * (number % 2))
    await set_price(database, 1)
    done = await run(database, portion=2)
    assert (done.checked, done.corrected, done.cost) == (7, 7, 21)
    assert set((await amounts(database)).values()) == {(3, 3)}


async def test_runs_at_the_same_time_append_one_correction(database: AsyncEngine) -> None:
    for number in range(20):
        await add(database, f"job_{number}")
    await set_price(database, 1)
    await asyncio.gather(*(reprice(Repricing(database), MORNING, portion=3) for _ in range(4)))
    assert set((await amounts(database)).values()) == {(3, 3)}
    assert len(await ledger(database)) == 40


async def test_a_dry_run_appends_nothing(database: AsyncEngine) -> None:
    await add(database, "job_1")
    await set_price(database, 1)
    done = await run(database, dry_run=True)
    assert (done.corrected, done.cost) == (1, 3)
    assert len(await ledger(database)) == 1


async def test_the_commands(
    database: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)

    async def command(*arguments: str) -> list[str]:
        assert await asyncio.to_thread(main, arguments) == 0
        return capsys.readouterr().out.splitlines()

    await set_price(database, 1)
    await set_price(database, 100, MORNING)
    await add(database, "job_1", amounts=("300", "300"))
    await add(database, "job_2", input_cache_read=1)
    heading, row = await command("prices", "--model", "m")
    assert re.split(" {2,}", heading)[:4] == ["model", "tier", "from", "input"]
    assert " ".join(row.split()) == "m default 0 100 - - - 200 - 2026-11-20T06:00:00+00:00 models.yaml"
    assert len(await command("prices", "--history")) == 3
    await set_price(database, 1, MORNING)
    again = ("reprice", "--since", "2026-11-20")
    unpriced = "1 entries have no price, or a part without one; set it, and run this again"
    assert await command(*again, "--dry-run") == [
        "checked 2 entries, would correct 1: cost -297, charge -297 dollars",
        unpriced,
    ]
    assert await command(*again) == ["checked 2 entries, corrected 1: cost -297, charge -297 dollars", unpriced]
    assert await command(*again) == ["checked 2 entries, corrected 0: cost +0, charge +0 dollars", unpriced]
    with pytest.raises(SystemExit):
        main(["reprice", "--since", "yesterday"])
    assert "must be a date such as 2026-01-31" in capsys.readouterr().err
