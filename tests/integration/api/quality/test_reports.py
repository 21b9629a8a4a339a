"""Reports on quality from the request log, feedback and judgements."""

from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, insert, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore
from api.quality import store
from api.quality.intervals import Mean, Rate, bootstrap_mean, wilson
from api.quality.service import QualityItem, QualityService
from api.quality.store import Dimension, QualitySelection, QualityStore, RequestCounts, ScoredRubric, _statement
from api.usage.periods import Periods
from shared.domain.errors import Forbidden, InvalidRequest
from shared.domain.owner import Owner
from shared.postgres.engine import connect, transaction
from shared.postgres.quality_tables import EvalRunRow, FeedbackRow, JudgementRow
from shared.postgres.request_log_tables import RequestLogRow
from tests.support.database import make_owner

FIRST, END = date(2026, 11, 20), date(2026, 11, 23)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
UTC_ZONE, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
_numbers = count()
PLANS = """
SELECT coalesce(sum(generic_plans), 0)::int, coalesce(sum(custom_plans), 0)::int
FROM pg_prepared_statements
WHERE statement LIKE '%FROM request_log%' AND statement NOT LIKE '%pg_prepared_statements%'
"""


@pytest.fixture
def quality(database: AsyncEngine) -> QualityService:
    return QualityService(QualityStore(database), ApiKeyStore(database))


async def add(database: AsyncEngine, row: Any, *values: dict[str, Any]) -> None:
    async with database.connect() as connection:
        for one in values:
            await connection.execute(insert(row).values(**one))


def request(owner: Owner, **columns: Any) -> dict[str, Any]:
    """A row of the request log: a completed answer that is no refusal."""
    return {
        "job_id": f"job_{next(_numbers):04d}", "ended_at": NOON, "project_id": owner.project_id, "key_id": 1,
        "model": "m", "requested_model": "auto", "status": "completed", "created_at": NOON, "level": "metadata",
        "refused": False, "refusal_source": "classifier", **columns,
    }  # fmt: skip


def rating(owner: Owner, value: Any = "up", **columns: Any) -> dict[str, Any]:
    return {
        "project_id": owner.project_id, "job_id": f"job_{next(_numbers):04d}", "metric": "rating", "value": value,
        "source": "key", "model": "m", "requested_model": "auto", "created_at": NOON, **columns,
    }  # fmt: skip


def judgement(owner: Owner, run_id: str, score: float | None, **columns: Any) -> dict[str, Any]:
    return {
        "run_id": run_id, "item": f"job_{next(_numbers):04d}", "project_id": owner.project_id, "model": "m",
        "requested_model": "auto", "state": "unparsable" if score is None else "scored", "score": score,
        "answered_at": NOON, **columns,
    }  # fmt: skip


def run(
    run_id: str, rubric: str, kind: str = "live", *, judge: str = "judge", scale: str | None = "1-5"
) -> dict[str, Any]:
    options = {} if scale is None else {"scale": scale}
    return {
        "id": run_id, "kind": kind, "rubric": rubric, "prompt_version": "1", "judge_model": judge, "options": options,
    }  # fmt: skip


def selection(*group_by: Dimension, by_day: bool = False, zone: ZoneInfo = UTC_ZONE, **filters: Any) -> Any:
    periods = Periods.days(FIRST, END, zone) if by_day else Periods.whole(FIRST, END, zone)
    return QualitySelection(periods, group_by, by_day=by_day, **filters)


async def items(quality: QualityService, chosen: QualitySelection) -> list[QualityItem]:
    found, has_more = await quality.page(chosen, limit=100)
    assert not has_more
    return found


async def test_rates_of_requests(database: AsyncEngine, quality: QualityService, owner: Owner) -> None:
    await add(
        database,
        RequestLogRow,
        request(owner),
        request(owner, refused=True),
        request(owner, refused=True, refusal_source="provider", status="incomplete"),
        request(owner, status="failed", refused=None, refusal_source=None),
        request(owner, status="expired", refused=None, refusal_source=None),
        request(owner, status="cancelled", refused=None, refusal_source=None),
        # Not of a client, and not of these days.
        request(owner, kind="summary", refused=True),
        request(owner, ended_at=datetime(2026, 11, 23, tzinfo=UTC)),
        request(owner, ended_at=datetime(2026, 11, 19, 23, 59, tzinfo=UTC)),
    )
    (found,) = await items(quality, selection())
    assert found.requests == RequestCounts(5, 2, 3, 1, 1)
    assert (found.refusals, found.errors, found.up) == (Rate(2, 3), Rate(2, 5), Rate(0, 0))
    assert found.refusals.interval == wilson(2, 3)


async def test_rates_of_feedback(database: AsyncEngine, quality: QualityService, owner: Owner) -> None:
    await add(
        database,
        FeedbackRow,
        rating(owner),
        rating(owner, "down"),
        rating(owner, author="ann"),
        rating(owner, True, metric="solved"),
        rating(owner, model=None, requested_model=None, job_id=None, conversation="c"),
    )
    (found,) = await items(quality, selection())
    assert (found.up, found.feedback.others) == (Rate(3, 4), 1)
    first, second = await items(quality, selection(Dimension.MODEL))
    assert (first.values, first.up) == ([None], Rate(1, 1)), "conversations have no model"
    assert (second.values, second.up) == (["m"], Rate(2, 3))


async def test_scores_of_judges(database: AsyncEngine, quality: QualityService, owner: Owner) -> None:
    await add(database, EvalRunRow, run("a", "helpful"), run("b", "true", scale=None), run("c", "true", "set"))
    await add(
        database,
        JudgementRow,
        *(judgement(owner, "a", score) for score in (5, 4, 4, 1)),
        judgement(owner, "a", None),
        judgement(owner, "a", None, state="failed"),
        judgement(owner, "a", None, state="pending"),
        judgement(owner, "b", None),
        judgement(owner, "c", 3),
    )
    (found,) = await items(quality, selection())
    helpful, true = found.scores
    assert helpful.rubric == ScoredRubric("helpful", "1", "judge", "1-5", "a")
    assert (helpful.unparsable, helpful.failed) == (1, 1)
    assert helpful.mean == bootstrap_mean({5.0: 1, 4.0: 2, 1.0: 1})
    assert (true.rubric, true.mean, true.unparsable) == (ScoredRubric("true", "1", "judge", "", "b"), None, 1)


async def test_scores_that_are_not_comparable_are_not_mixed(
    database: AsyncEngine, quality: QualityService, owner: Owner
) -> None:
    """A rubric whose question, scale or judge has changed has another run, though its name and version are the same."""
    others = run("b", "helpful", judge="other"), run("c", "helpful", scale="yes/no"), run("d", "helpful")
    await add(database, EvalRunRow, run("a", "helpful"), *others)
    await add(database, JudgementRow, *(judgement(owner, one, 5) for one in "aabd"), judgement(owner, "c", 1))
    (found,) = await items(quality, selection())
    assert [(one.rubric.run_id, one.mean and one.mean.n) for one in found.scores] == [
        ("a", 2), ("d", 1), ("c", 1), ("b", 1),
    ]  # fmt: skip


async def test_yes_and_no_are_a_rate(database: AsyncEngine, quality: QualityService, owner: Owner) -> None:
    """As in the report of the rubric: Wilson's interval of the share of yes."""
    await add(database, EvalRunRow, run("a", "grounded", scale="yes/no"))
    await add(database, JudgementRow, *(judgement(owner, "a", score) for score in (1, 1, 1, 0)))
    (found,) = await items(quality, selection())
    (grounded,) = found.scores
    assert grounded.mean == Mean(0.75, 4, wilson(3, 4))


async def test_groups(database: AsyncEngine, quality: QualityService, owner: Owner) -> None:
    other = await make_owner(database, "another")
    late = datetime(2026, 11, 21, 23, 30, tzinfo=UTC)  # the next day in Berlin
    await add(
        database,
        RequestLogRow,
        request(owner),
        request(owner, model="n", status="failed"),
        request(owner, requested_model="n", model="n"),
        request(other, ended_at=late),
    )
    await add(database, FeedbackRow, rating(owner, "down", created_at=late))
    by_model = await items(quality, selection(Dimension.MODEL))
    assert [(one.values, one.errors) for one in by_model] == [(["m"], Rate(0, 2)), (["n"], Rate(1, 2))]
    by_both = await items(quality, selection(Dimension.ROUTE, Dimension.MODEL))
    assert [one.values for one in by_both] == [["auto", "m"], ["auto", "n"], ["n", "n"]]
    by_project = await items(quality, selection(Dimension.PROJECT))
    assert {one.values[0]: one.errors.n for one in by_project} == {"test": 3, "another": 1}
    days = await items(quality, selection(by_day=True))
    assert [(one.day, one.errors.n, one.up.n) for one in days] == [("2026-11-21", 4, 1)]
    days = await items(quality, selection(by_day=True, zone=BERLIN))
    assert [(one.day, one.errors.n, one.up.n) for one in days] == [("2026-11-21", 3, 0), ("2026-11-22", 1, 1)]
    mine = await items(quality, selection(project_ids={owner.project_id}, models={"n"}, routes={"auto"}))
    assert [one.errors for one in mine] == [Rate(1, 1)]


async def test_a_report_that_takes_too_long_says_what_helps(
    database: AsyncEngine, quality: QualityService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "TIMEOUT_S", 0.05)
    async with transaction(database) as connection:
        await connection.execute(text("LOCK TABLE request_log IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(InvalidRequest, match=r"longer than 0\.05 s; choose a shorter time, or one project"):
            await quality.page(selection(), limit=1)
    monkeypatch.setattr(store, "TIMEOUT_S", 20)
    assert await items(quality, selection()) == [], "the connection is as before"


async def test_a_report_reads_the_partitions_of_its_days(database: AsyncEngine) -> None:
    statement = _statement(selection(Dimension.MODEL), RequestLogRow, RequestLogRow.ended_at, (func.count(),))
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    compiled = statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    async with database.connect() as connection:
        for day in ("2026-11-19", "2026-11-21", "2026-11-24"):
            await connection.execute(text(f"SELECT create_log_partition('request_log', DATE '{day}', 10000)"))
        plan = "\n".join((await connection.exec_driver_sql(f"EXPLAIN {compiled}")).scalars())
    read = {day for day in ("20261119", "20261121", "20261124") if f"request_log_{day}" in plan}
    assert read == {"20261121"}


async def test_each_report_is_planned_for_its_own_days(database_url: str) -> None:
    engine = connect(database_url, pool_size=1)
    try:
        for _ in range(8):
            await QualityStore(engine).requests(selection(Dimension.MODEL))
        async with engine.connect() as connection:
            assert (await connection.execute(text(PLANS))).one() == (0, 8)
    finally:
        await engine.dispose()


async def test_pages_of_groups(database: AsyncEngine, quality: QualityService, owner: Owner) -> None:
    await add(database, RequestLogRow, *(request(owner, model=f"m{number}") for number in range(5)))
    chosen = selection(Dimension.MODEL)
    first, has_more = await quality.page(chosen, limit=2)
    assert (len(first), has_more) == (2, True)
    last, has_more = await quality.page(chosen, limit=2, offset=4)
    assert ([one.values for one in last], has_more) == ([["m4"]], False)


async def test_a_key_sees_its_own_project(quality: QualityService, owner: Owner, database: AsyncEngine) -> None:
    await make_owner(database, "another")
    member = Principal(owner.project_id, owner.key_id, frozenset({Scope.INFERENCE}))
    operator = Principal(owner.project_id, owner.key_id, frozenset({Scope.ADMIN}))
    assert await quality.project_ids(member, ()) == {owner.project_id}
    assert await quality.project_ids(member, ("test",)) == {owner.project_id}
    for name in ("another", "nobody"):
        with pytest.raises(Forbidden):
            await quality.project_ids(member, (name,))
    assert await quality.project_ids(operator, ()) is None
    assert await quality.project_ids(operator, ("test",)) == {owner.project_id}
    with pytest.raises(InvalidRequest):
        await quality.project_ids(operator, ("nobody",))
