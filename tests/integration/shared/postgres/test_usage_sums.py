"""The sums of the ledger contain every entry exactly once."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from decimal import Decimal
from random import Random
from string import ascii_letters
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.usage.roll_up import UsageRollUp
from shared.domain.field_types import MAX_MODEL_NAME
from shared.domain.owner import MAX_END_USER
from shared.postgres.engine import connect, transaction
from shared.postgres.usage_sums import Added, UsageSums
from shared.postgres.usage_tables import UsageSumRow
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics
from tests.support.examples import example_count
from tests.support.usage_entries import NOON, correction, entry, write


async def rows(database: AsyncEngine) -> list[Any]:
    async with database.connect() as connection:
        order = (UsageSumRow.starts_at, UsageSumRow.model, UsageSumRow.end_user)
        return list((await connection.execute(select(UsageSumRow.__table__).order_by(*order))).all())


async def only_row(database: AsyncEngine) -> Any:
    (row,) = await rows(database)
    return row


async def add_all(sums: UsageSums, portion: int = 50_000) -> list[Added]:
    """Add in portions until nothing is due."""
    done = []
    while (await sums.state()).due:
        added = await sums.add(portion)
        assert added is not None
        done.append(added)
    return done


async def test_entries_are_summed_by_quarter_hour_and_columns(database: AsyncEngine) -> None:
    lost = entry(attempt=1, final=False, outcome="worker_lost", charge=Decimal(0), output_text=3)
    await write(
        database,
        [
            lost,
            entry(job_id=lost["job_id"], attempt=2, cost=Decimal("2.5"), ended_at=NOON + timedelta(minutes=14)),
            entry(
                attempt=0, outcome="answered", cost=Decimal(0), charge=Decimal(0), saved=Decimal("0.75"),
                input_fresh=0, output_text=0,
            ),
            entry(ended_at=NOON + timedelta(minutes=15), input_cache_read=40, output_reasoning=5),
            entry(end_user="ann"),
            entry(batch_id="batch_1", model="other"),
        ],
    )  # fmt: skip
    await add_all(UsageSums(database))
    found = {(row.starts_at, row.end_user, row.model, row.batch): row for row in await rows(database)}
    later = NOON + timedelta(minutes=15)
    assert set(found) == {
        (NOON, "", "m", False), (NOON, "ann", "m", False), (NOON, "", "other", True), (later, "", "m", False),
    }  # fmt: skip
    first = found[NOON, "", "m", False]
    assert (first.requests, first.cached_requests, first.attempts) == (2, 1, 2)
    assert (first.input_fresh, first.output_text) == (200, 13)
    assert (first.cost, first.charge, first.saved, first.unpriced) == (Decimal("3.5"), Decimal(1), Decimal("0.75"), 0)
    assert (found[later, "", "m", False].input_cache_read, found[later, "", "m", False].output_reasoning) == (40, 5)


async def test_the_engine_of_a_sum_is_known_if_all_entries_agree(database: AsyncEngine) -> None:
    sums = UsageSums(database)

    async def engines(*added: dict[str, Any]) -> dict[str, str | None]:
        await write(database, added)
        await add_all(sums)
        return {row.model: row.engine for row in await rows(database)}

    found = await engines(
        entry(model="a", engine="vllm"), entry(model="a", engine="vllm", attempt=0, outcome="answered"),
        entry(model="b", engine="vllm"), entry(model="b"), entry(model="c", engine="vllm"),
        entry(model="c", engine="openai"), entry(model="d"),
    )  # fmt: skip
    assert found == {"a": "vllm", "b": None, "c": None, "d": None}
    found = await engines(entry(model="a", engine="vllm"), *(entry(model=name, engine="vllm") for name in "bcd"))
    assert found == {"a": "vllm", "b": None, "c": None, "d": None}, "an engine that was not known stays so"
    assert (await engines(entry(model="a", engine="openai")))["a"] is None
    assert (await engines(entry(model="a", engine="openai", ended_at=NOON + timedelta(minutes=15))))["a"] == "openai"


async def test_what_was_saved_is_not_known_if_a_part_of_it_is_not(database: AsyncEngine) -> None:
    answer = {"attempt": 0, "outcome": "answered", "cost": Decimal(0), "charge": Decimal(0)}
    sums = UsageSums(database)

    async def saved(*added: dict[str, Any]) -> dict[str, Decimal | None]:
        await write(database, added)
        await add_all(sums)
        return {row.model: row.saved for row in await rows(database)}

    unpriced = entry(model="b", cost=None, charge=None)
    found = await saved(
        entry(model="a", saved=Decimal("0.5"), **answer), entry(model="a"), unpriced,
        correction(unpriced, charge=Decimal(1), cost=Decimal(1)), entry(model="c", **answer),
        entry(model="c", saved=Decimal("0.5"), **answer),
    )  # fmt: skip
    assert found == {"a": Decimal("0.5"), "b": 0, "c": None}
    found = await saved(*(entry(model=name, saved=Decimal("0.25"), **answer) for name in "ac"))
    assert (found["a"], found["c"]) == (Decimal("0.75"), None)
    assert (await saved(entry(model="a", **answer)))["a"] is None


async def test_the_longest_names_are_summed(database: AsyncEngine) -> None:
    """They fit into the index: an entry that did not would stop the sums."""
    names = Random(7)
    user = "".join(chr(names.randrange(0x10000, 0x10FFFF)) for _ in range(MAX_END_USER))
    requested, served = ("".join(names.choices(ascii_letters, k=MAX_MODEL_NAME)) for _ in range(2))
    amount = Decimal("999999999999999999.123456789012345678")
    await write(
        database,
        [entry(end_user=user, requested_model=requested, model=served, service_tier="priority", kind="count_tokens",
               batch_id="batch_1", cost=amount, charge=amount, saved=amount)],
    )  # fmt: skip
    await add_all(UsageSums(database))
    row = await only_row(database)
    assert (row.end_user, row.requested_model, row.model, row.cost) == (user, requested, served, amount)


async def test_nothing_is_added_twice(database: AsyncEngine) -> None:
    sums = UsageSums(database)
    await write(database, [entry(), entry()])
    await add_all(sums)
    before = await rows(database)
    await sums.add()
    assert await rows(database) == before
    await write(database, [entry()])
    await add_all(sums)
    row = await only_row(database)
    assert (row.requests, row.cost) == (3, Decimal(3))


async def test_an_entry_that_is_committed_late_is_added(database: AsyncEngine) -> None:
    """Its transaction began before others that are in the sums already would be, if they did not wait for it."""
    sums = UsageSums(database)
    async with transaction(database) as late:
        await write(late, [entry(model="late")])
        await write(database, [entry(model="early")])
        await sums.add()
        assert await rows(database) == []
        state = await sums.state()
        assert (state.due, state.behind) == (False, True)
    await add_all(sums)
    assert [row.model for row in await rows(database)] == ["early", "late"]
    assert not (await sums.state()).behind


async def test_entries_of_a_transaction_that_is_rolled_back_are_never_added(database: AsyncEngine) -> None:
    async with database.connect() as connection:
        await connection.execution_options(isolation_level="READ COMMITTED")
        await write(connection, [entry()])
        await connection.rollback()
    await write(database, [entry()])
    await add_all(UsageSums(database))
    assert (await only_row(database)).requests == 1


async def test_one_process_at_a_time_adds(database: AsyncEngine) -> None:
    sums = UsageSums(database)
    await write(database, [entry()])
    async with transaction(database) as other:
        await other.execute(text("SELECT FROM usage_watermark FOR UPDATE"))
        assert await sums.add() is None
    await asyncio.gather(*(sums.add() for _ in range(4)))
    assert (await only_row(database)).requests == 1


async def test_a_backlog_is_added_in_portions(database: AsyncEngine) -> None:
    for size in (1, 2, 5, 1, 1):
        await write(database, [entry() for _ in range(size)])
    done = await add_all(UsageSums(database), portion=2)
    assert sum(added.entries for added in done) == 10
    # The entries of one transaction are added together.
    assert max(added.entries for added in done) == 5
    assert len(done) >= 4
    assert (await only_row(database)).requests == 10


async def test_unpriced_entries_are_counted_until_a_correction_prices_them(database: AsyncEngine) -> None:
    sums = UsageSums(database)
    metrics = Metrics(Exporter.API, ["m"])
    roll_up = UsageRollUp(sums, metrics)
    first, second = entry(cost=None, charge=None), entry(cost=Decimal(1), charge=None)
    await write(database, [first, second, entry()])
    await roll_up.step()
    row = await only_row(database)
    assert (row.unpriced, row.cost, row.charge, row.requests) == (2, Decimal(2), Decimal(1), 3)
    assert metrics.usage_unpriced.labels("m")._value.get() == 2
    # The first correction has one of two amounts; a later one changes what is priced already.
    await write(database, [correction(first, cost=Decimal(5))])
    await roll_up.step()
    assert (await only_row(database)).unpriced == 2
    await write(database, [correction(first, 2, charge=Decimal(4)), correction(second, charge=Decimal(3))])
    await write(database, [correction(second, 2, charge=Decimal("-0.5"))])
    await roll_up.step()
    row = await only_row(database)
    assert (row.unpriced, row.cost, row.charge) == (0, Decimal(7), Decimal("7.5"))
    assert (row.requests, row.attempts, row.input_fresh) == (3, 3, 300)
    assert metrics.usage_unpriced.labels("m")._value.get() == 2


async def test_the_age_tells_whether_the_sums_fall_behind(database: AsyncEngine) -> None:
    metrics = Metrics(Exporter.API, ["m"])
    roll_up = UsageRollUp(UsageSums(database), metrics)

    async def age() -> float:
        await roll_up.step()
        value: float = metrics.usage_sums_age._value.get()
        return value

    await write(database, [entry()])
    idle = await age()
    async with transaction(database) as late:
        await write(late, [entry()])
        await write(database, [entry()])
        began = asyncio.get_running_loop().time()
        waiting = [await age() for _ in range(3)]
        assert waiting == sorted(waiting)
        assert waiting[-1] > idle
        waited = asyncio.get_running_loop().time() - began
        assert waiting[-1] - waiting[0] <= waited
    assert await age() < waiting[-1]


async def test_a_ledger_that_was_restored_into_another_cluster_is_summed_anew(database: AsyncEngine) -> None:
    """There, transactions have lower ids than those by which the entries and the watermark were written."""
    sums = UsageSums(database)
    await write(database, [entry() for _ in range(5)])
    await add_all(sums)
    async with database.connect() as connection:
        await connection.execute(text("UPDATE usage_events SET written_by = written_by + 1000000000"))
        await connection.execute(text("UPDATE usage_watermark SET summed_before = summed_before + 1000000000"))
    await write(database, [entry()])
    await add_all(sums, portion=2)
    row = await only_row(database)
    assert (row.requests, row.cost) == (6, Decimal(6))
    await write(database, [entry()])
    await add_all(sums)
    assert (await only_row(database)).requests == 7


# What happens in one of three transactions, which are open at the same time; `add` is for the sums.
WRITERS = 3
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "correct", "commit", "commit", "roll back", "add", "add"]),
        st.integers(0, WRITERS - 1),
    ),
    max_size=30,
)
TOTALS = """
    SELECT coalesce(sum(requests), 0)::int, coalesce(sum(input_fresh), 0)::int, coalesce(sum(cost), 0),
        coalesce(sum(charge), 0), coalesce(sum(unpriced), 0)::int FROM usage_sums
"""
# What corrections add.
AMOUNTS: list[dict[str, Any]] = [
    {"cost": Decimal(5)}, {"charge": Decimal(3)}, {"cost": Decimal(-1), "charge": Decimal(1)},
]  # fmt: skip
# The same from the ledger: amounts of entries and their corrections together.
EXPECTED = """
    SELECT count(*)::int, coalesce(sum(tokens), 0)::int, coalesce(sum(cost), 0), coalesce(sum(charge), 0),
        (count(*) FILTER (WHERE cost IS NULL OR charge IS NULL))::int
    FROM (
        SELECT sum(input_fresh) AS tokens, sum(cost) AS cost, sum(charge) AS charge
        FROM usage_events GROUP BY job_id, attempt
    ) AS entries
"""


@settings(example_count(25, long=1000), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_no_interleaving_of_transactions_loses_or_repeats_an_entry(
    database_url: str, actions: list[tuple[str, int]]
) -> None:
    asyncio.run(interleave(database_url, actions))


async def interleave(database_url: str, actions: list[tuple[str, int]]) -> None:
    engine = connect(database_url, pool_size=WRITERS + 2)
    sums, writers = UsageSums(engine), [Writer(engine) for _ in range(WRITERS)]
    committed: list[dict[str, Any]] = []
    try:
        async with engine.connect() as connection:
            await connection.execute(text("TRUNCATE usage_events, usage_sums"))
        for step, (action, number) in enumerate(actions):
            writer = writers[number]
            match action:
                case "write":
                    await writer.write(entry(**[{}, {"cost": None}, {"cost": None, "charge": None}][number]))
                case "correct" if not any(one.written for one in writers):
                    # The next number of an entry, which a transaction of its own writes after it has read the others.
                    if entries := [row for row in committed if not row["correction"]]:
                        base = entries[step % len(entries)]
                        rows = [row for row in committed if row["job_id"] == base["job_id"]]
                        await writer.write(correction(base, len(rows), **AMOUNTS[number]))
                case "commit":
                    committed += await writer.commit()
                case "roll back":
                    await writer.roll_back()
                case "add":
                    await sums.add(portion=1 + number)
        for writer in writers:
            await writer.commit()
        await add_all(sums, portion=2)
        async with engine.connect() as connection:
            totals = (await connection.execute(text(TOTALS))).one()
            expected = (await connection.execute(text(EXPECTED))).one()
        assert tuple(totals) == tuple(expected)
    finally:
        for writer in writers:
            await writer.roll_back()
        await engine.dispose()


class Writer:
    """A transaction that may stay open, and then the next one."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.written: list[dict[str, Any]] = []
        self._connection: AsyncConnection | None = None
        self._open = contextlib.AsyncExitStack()

    async def write(self, row: dict[str, Any]) -> None:
        if self._connection is None:
            self._connection = await self._open.enter_async_context(self._engine.connect())
            await self._connection.execution_options(isolation_level="READ COMMITTED")
        await write(self._connection, [row])
        self.written.append(row)

    async def commit(self) -> list[dict[str, Any]]:
        """Commit; returns the rows that were written."""
        if self._connection is not None:
            await self._connection.commit()
        return await self._end()

    async def roll_back(self) -> None:
        if self._connection is not None:
            await self._connection.rollback()
        await self._end()

    async def _end(self) -> list[dict[str, Any]]:
        await self._open.aclose()
        written, self.written, self._connection = self.written, [], None
        return written
