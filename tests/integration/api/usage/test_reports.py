"""Reports of the sums of usage, and of the ledger itself."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet
import pytest
from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore
from api.usage.periods import Periods
from api.usage.report import Report
from api.usage.service import UsageService
from api.usage.store import Dimension, UsageFilters, UsageReportStore, UsageSelection, usage_statement
from shared.domain.errors import Forbidden, InvalidRequest
from shared.domain.owner import Owner
from shared.postgres.engine import connect
from shared.postgres.usage_sums import UsageSums
from tests.support.database import make_owner
from tests.support.usage_entries import NOON, entry, write

ALL = UsageFilters()
DAY = date(2025, 11, 20)
WEEK = (DAY - timedelta(days=3), DAY + timedelta(days=4))
ADMIN = Principal(1, 1, frozenset({Scope.ADMIN}))


def service(database: AsyncEngine) -> UsageService:
    return UsageService(UsageReportStore(database), ApiKeyStore(database))


async def summed(database: AsyncEngine, entries: list[dict[str, Any]]) -> None:
    await write(database, entries)
    await UsageSums(database).add()


def by_day(zone: str, *group_by: Dimension, filters: UsageFilters = ALL) -> UsageSelection:
    return UsageSelection(Periods.days(*WEEK, ZoneInfo(zone)), filters, group_by, by_period=True)


async def test_cost_by_user_and_day_of_a_time_zone(database: AsyncEngine) -> None:
    late = NOON.replace(hour=23, minute=30)
    await summed(
        database,
        [
            entry(end_user="ann"),
            entry(end_user="ann", ended_at=late, charge=Decimal("0.25")),
            entry(end_user="bob", ended_at=late),
            entry(ended_at=NOON - timedelta(days=30)),
        ],
    )

    async def charges(zone: str) -> list[tuple[str, str, float]]:
        report = await service(database).report(by_day(zone, Dimension.USER), "day")
        return [(item["day"], item["user"], item["charge"]) for item in report.items()]

    assert await charges("UTC") == [("2025-11-20", "ann", 1.25), ("2025-11-20", "bob", 1.0)]
    assert await charges("Europe/Berlin") == [
        ("2025-11-20", "ann", 1.0), ("2025-11-21", "ann", 0.25), ("2025-11-21", "bob", 1.0),
    ]  # fmt: skip


async def test_what_a_row_shows(database: AsyncEngine, owner: Owner) -> None:
    project, key = owner.project_id, owner.key_id
    await summed(
        database,
        [
            entry(
                project_id=project, key_id=key, input_fresh=50, input_cache_read=150, input_cache_write_5m=20,
                input_cache_write_1h=30, output_text=6, output_reasoning=4, end_user="=1+1",
                cost=Decimal("0.000000000123"), charge=Decimal("1E+2"),
            ),
            entry(
                project_id=project, key_id=key, attempt=0, input_fresh=0, output_text=0, cost=Decimal(0),
                charge=Decimal(0), saved=Decimal("0.5"), end_user="=1+1",
            ),
        ],
    )  # fmt: skip
    periods = Periods.whole(*WEEK, ZoneInfo("UTC"))
    groups = (Dimension.PROJECT, Dimension.KEY, Dimension.USER, Dimension.BATCH)
    report = await service(database).report(UsageSelection(periods, ALL, groups), reader=ADMIN)
    assert report.items() == [
        {
            "project": "test", "key": f"key_{key}", "user": "=1+1", "batch": False, "requests": 2,
            "cached_requests": 1, "attempts": 1, "input_tokens": 250, "cached_input_tokens": 150,
            "cache_write_tokens": 50, "output_tokens": 10, "reasoning_tokens": 4, "total_tokens": 260,
            "cached_input_share": 0.6, "cached_request_share": 0.5, "cost": 1.23e-10, "charge": 100.0, "saved": 0.5,
            "unpriced": 0,
        }
    ]  # fmt: skip
    header, line = report.csv().decode().splitlines()
    assert header.startswith("project,key,user,batch,requests,")
    # A spreadsheet does not run what a client has sent, and amounts are exact.
    assert line.startswith(f"test,key_{key},'=1+1,false,2,1,1,250,")
    assert line.endswith(",0.6,0.5,0.000000000123,100,0.5,0")


async def test_usage_by_engine(database: AsyncEngine) -> None:
    await summed(
        database,
        [entry(model="a", engine="vllm"), entry(model="b", engine="vllm"), entry(model="c", engine="openai"), entry()],
    )
    selection = by_day("UTC", Dimension.ENGINE)
    for chosen in (selection, replace(selection, from_ledger=True)):
        report = await service(database).report(chosen, "day")
        found = [(item["engine"], item["requests"]) for item in report.items()]
        assert found == [("openai", 1), ("vllm", 2), (None, 1)]
    assert [line.split(",")[:3] for line in report.csv().decode().splitlines()] == [
        ["day", "engine", "requests"], [str(DAY), "openai", "1"], [str(DAY), "vllm", "2"], [str(DAY), "", "1"],
    ]  # fmt: skip
    table = pyarrow.parquet.read_table(io.BytesIO(report.parquet()))
    assert table["engine"].to_pylist() == ["openai", "vllm", None]


async def test_what_has_no_price_does_not_cost_nothing(database: AsyncEngine) -> None:
    await summed(
        database, [entry(model="a", cost=None, charge=None), entry(model="b", cost=None, charge=None), entry(model="b")]
    )
    report = await service(database).report(by_day("UTC", Dimension.MODEL), "day", reader=ADMIN)
    assert [(item["model"], item["cost"], item["charge"], item["unpriced"]) for item in report.items()] == [
        ("a", None, None, 1), ("b", 1.0, 1.0, 1),
    ]  # fmt: skip


async def test_what_was_saved_is_not_0_if_it_is_not_known(database: AsyncEngine) -> None:
    answer = {"attempt": 0, "outcome": "answered", "cost": Decimal(0), "charge": Decimal(0)}
    await summed(
        database, [entry(model="a", saved=Decimal("0.5"), **answer), entry(model="b", **answer), entry(model="c")]
    )
    selection = by_day("UTC", Dimension.MODEL)
    for chosen in (selection, replace(selection, from_ledger=True)):
        report = await service(database).report(chosen, "day")
        assert [(item["model"], item["saved"]) for item in report.items()] == [("a", 0.5), ("b", None), ("c", 0.0)]
        assert report.json_sums(report.total())["saved"] is None
        table = pyarrow.parquet.read_table(io.BytesIO(report.parquet()))
        assert table["saved"].to_pylist() == [Decimal("0.5"), None, Decimal(0)]
        assert [line["saved"] for line in csv.DictReader(report.csv().decode().splitlines())] == ["0.5", "", "0"]
    nothing = await service(database).report(by_day("UTC", filters=UsageFilters(models={"none"})), "day")
    assert nothing.json_sums(nothing.total())["saved"] == 0


async def test_only_administrators_see_the_cost(database: AsyncEngine) -> None:
    await summed(database, [entry(cost=Decimal("0.75"))])
    usage, selection = service(database), by_day("UTC", Dimension.MODEL)
    member = replace(ADMIN, scopes=frozenset({Scope.INFERENCE}))
    for reader, cost, cell in ((ADMIN, 0.75, "0.75"), (member, None, ""), (None, None, "")):
        page, _ = await usage.page(selection, "day", limit=9, offset=0, reader=reader)
        for report in (await usage.report(selection, "day", reader=reader), page):
            for item in (*report.items(), report.json_sums(report.total())):
                assert (item["cost"], item["charge"]) == (cost, 1.0)
            (line,) = csv.DictReader(report.csv().decode().splitlines())
            assert (line["cost"], line["charge"]) == (cell, "1")


async def test_filters(database: AsyncEngine) -> None:
    await summed(
        database,
        [
            entry(), entry(key_id=3), entry(model="x"), entry(end_user="ann"), entry(batch_id="batch_1"),
            entry(project_id=9),
        ],
    )  # fmt: skip

    async def requests(**filters: Any) -> int:
        report = await service(database).report(by_day("UTC", filters=UsageFilters(**filters)), "day")
        return sum(row.requests for row in report.rows)

    assert await requests() == 6
    assert await requests(project_ids={9}) == 1
    assert await requests(project_ids={1, 9}) == 6
    assert await requests(key_ids={3}) == 1
    assert await requests(models={"x", "y"}) == 1
    assert await requests(end_users={"ann"}) == 1
    assert await requests(end_users={""}) == 5
    assert await requests(batch=True) == 1
    assert await requests(batch=False) == 5
    assert await requests(models=set()) == 0


async def test_pages(database: AsyncEngine) -> None:
    await summed(database, [entry(end_user=f"user-{number}") for number in range(5)])
    selection = by_day("UTC", Dimension.USER)
    users, offset, has_more = [], 0, True
    while has_more:
        page, has_more = await service(database).page(selection, "day", limit=2, offset=offset)
        users.append([item["user"] for item in page.items()])
        offset += 2
    assert users == [["user-0", "user-1"], ["user-2", "user-3"], ["user-4"]]


async def test_minutes_are_read_from_the_ledger(database: AsyncEngine) -> None:
    start = int(NOON.timestamp())
    await write(
        database,
        [entry(), entry(ended_at=NOON + timedelta(seconds=59)), entry(ended_at=NOON + timedelta(seconds=60)),
         entry(project_id=7, ended_at=NOON + timedelta(minutes=2)), entry(ended_at=NOON + timedelta(minutes=3))],
    )  # fmt: skip
    minutes = UsageSelection(Periods.of_width(start, 3, 60), ALL, by_period=True, from_ledger=True)
    report = await service(database).report(minutes)
    assert [(row.period, row.requests, row.cost) for row in report.rows] == [
        (0, 2, Decimal(2)), (1, 1, Decimal(1)), (2, 1, Decimal(1)),
    ]  # fmt: skip


@pytest.mark.parametrize("filters", [ALL, UsageFilters(project_ids={1})])
async def test_minutes_are_a_range_of_an_index(database: AsyncEngine, filters: UsageFilters) -> None:
    minutes = UsageSelection(Periods.of_width(0, 3, 60), filters, by_period=True, from_ledger=True)
    plan = await explain(database, usage_statement(minutes))
    assert "usage_events_project" in plan
    assert "ended_at >=" in plan
    assert "Seq Scan on usage_events" not in plan


PLANS = """
SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements
WHERE statement LIKE '%usage_sums%' AND statement NOT LIKE '%pg_prepared_statements%'
"""
SUMS_OF_A_MONTH = """
INSERT INTO usage_sums
SELECT timestamptz '2025-11-01Z' + n * interval '15 minutes', project, 2, 'ann', 'generate', 'm', 'm', 'default', false,
    1, 0, 1, 100, 0, 0, 0, 10, 0, 1, 1, 0, 0
FROM generate_series(0, 2879, 4) AS n, generate_series(1, 10) AS project
"""


async def test_reports_are_a_range_of_an_index(database: AsyncEngine) -> None:
    """Those of a project read the index only: in the table, its rows are far apart."""
    async with database.connect() as connection:
        for statement in (SUMS_OF_A_MONTH, "VACUUM ANALYZE usage_sums"):
            await connection.execute(text(statement))
    users = by_day("UTC", Dimension.USER, filters=UsageFilters(project_ids={1}))
    plan = await explain(database, usage_statement(users))
    assert "Index Only Scan using usage_sums_pkey" in plan
    assert "starts_at >=" in plan
    plan = await explain(database, usage_statement(by_day("UTC", Dimension.USER)))
    assert "Index Cond: ((starts_at >=" in plan
    assert "Filter:" not in plan


async def test_each_report_is_planned_for_its_own_times(database_url: str) -> None:
    """Not from the sixth execution on for any: PostgreSQL takes ten times as long then."""
    engine = connect(database_url, pool_size=1)
    try:
        for limit in (10, 10_000):
            for _ in range(8):
                await UsageReportStore(engine).rows(by_day("UTC", Dimension.USER), limit=limit)
        async with engine.connect() as connection:
            plans = await connection.execute(text(PLANS))
        assert plans.one() == (0, 16)
    finally:
        await engine.dispose()


async def explain(database: AsyncEngine, statement: Any) -> str:
    """The plan of a statement, of one for tables that are not empty."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    compiled = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    async with database.connect() as connection:
        await connection.execute(text("SET enable_seqscan = off"))
        lines = (await connection.exec_driver_sql(f"EXPLAIN {compiled}")).scalars().all()
        await connection.execute(text("RESET enable_seqscan"))
    return "\n".join(lines)


async def test_who_may_read_what(database: AsyncEngine, owner: Owner) -> None:
    usage, other = service(database), await make_owner(database, "other")
    own = Principal(owner.project_id, owner.key_id, frozenset({Scope.INFERENCE}))
    admin = Principal(owner.project_id, owner.key_id, frozenset({Scope.ADMIN}))
    assert (await usage.filters(own)).project_ids == {owner.project_id}
    assert (await usage.filters(own, projects=["test"])).project_ids == {owner.project_id}
    # Whether it exists or not.
    for names in (["other"], ["test", "other"], ["none"], ["no\0ne"]):
        with pytest.raises(Forbidden):
            await usage.filters(own, projects=names)
    assert (await usage.filters(admin)).project_ids is None
    assert (await usage.filters(admin, projects=["other"])).project_ids == {other.project_id}
    with pytest.raises(InvalidRequest, match="there is no project"):
        await usage.filters(admin, projects=["no\0ne"])
    with pytest.raises(InvalidRequest, match="key: must be the id of a key"):
        await usage.filters(admin, keys=["12"])


async def test_a_deleted_project_keeps_its_usage(database: AsyncEngine) -> None:
    await summed(database, [entry(project_id=404)])
    report: Report = await service(database).report(by_day("UTC", Dimension.PROJECT), "day")
    assert [item["project"] for item in report.items()] == ["project_404"]


async def test_a_statement_is_complete_once_its_time_is_in_the_sums(database: AsyncEngine) -> None:
    usage, end = service(database), NOON + timedelta(hours=1)
    assert await usage.is_complete(1, end)
    assert not await usage.is_complete(1, NOON + timedelta(days=36500))
    await write(database, [entry(), entry(project_id=2, ended_at=NOON + timedelta(hours=2))])
    assert not await usage.is_complete(1, end)
    assert await usage.is_complete(2, end)
    await UsageSums(database).add()
    assert await usage.is_complete(1, end)
