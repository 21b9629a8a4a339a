"""Lists of the request log: whose requests they show, conditions, pages, and that each is one bounded statement."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal, Scope
from api.requests.filters import Cursor, FeedbackFilter, RequestFilters, ScoreFilter
from api.requests.query import RequestQuery
from api.requests.service import LoggedRequests
from api.requests.store import LoggedRequestStore
from shared.domain.errors import Forbidden, InvalidRequest
from shared.domain.job import JobStatus
from shared.domain.owner import Owner
from tests.support.logged_requests import NOON, Logged, job_id_at, logged, write

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


async def found(database: AsyncEngine, filters: RequestFilters, **options: Any) -> list[str]:
    page = await LoggedRequestStore(database).page(filters, **{"limit": 100, **options})
    return [request.job_id for request in page.requests]


async def test_requests_of_other_projects_are_never_shown(
    database: AsyncEngine,
    owner: Owner,
    other_owner: Owner,
    reader: Principal,
    admin: Principal,
    requests: LoggedRequests,
) -> None:
    own, foreign = logged(project_id=owner.project_id), logged(project_id=other_owner.project_id, end_user="ann")
    await write(database, [own, foreign])

    async def seen(principal: Principal, **query: Any) -> set[str]:
        page = await requests.page(principal, RequestQuery(**query), limit=10)
        return {request.job_id for request in page.requests}

    assert await seen(reader) == {own.id}
    assert await seen(reader, project="test") == {own.id}
    assert await seen(reader, user="ann") == set()
    assert await seen(admin) == {own.id, foreign.id}
    assert await seen(admin, project="other") == {foreign.id}
    assert await seen(admin, user="ann") == {foreign.id}
    for name in ("other", "nothing"):
        with pytest.raises(Forbidden, match="its own project only"):
            await seen(reader, project=name)
    with pytest.raises(InvalidRequest, match="no project"):
        await seen(admin, project="nothing")
    with pytest.raises(Forbidden, match="`logs` scope"):
        await seen(replace(reader, scopes=frozenset({Scope.INFERENCE})))


async def test_conditions(database: AsyncEngine, owner: Owner) -> None:
    plain, special = logged(NOON - DAY), logged(
        end_user="ann", model="x", requested_model="auto", status="failed", error_code="engine_error", refused=True,
        conversation="c", batch_id="batch_1", request_id="req_1", feedback=[("rating", False), ("stars", 3)],
        scores=[("help", 4.5)], asked="hi",
    )  # fmt: skip
    calm = logged(NOON - HOUR, end_user="bob", refused=False, feedback=[("rating", True)], scores=[("help", 1)])
    await write(database, [plain, special, calm])
    cases: list[tuple[dict[str, Any], list[Logged]]] = [
        ({}, [special, calm, plain]),
        ({"start": NOON}, [special]),
        ({"end": NOON}, [calm, plain]),
        ({"start": NOON - HOUR, "end": NOON}, [calm]),
        ({"models": ("x", "y")}, [special]),
        ({"requested_models": ("auto",)}, [special]),
        ({"statuses": (JobStatus.FAILED, JobStatus.EXPIRED)}, [special]),
        ({"end_user": "ann"}, [special]),
        ({"end_user": "ann", "end": NOON}, []),
        ({"conversation": "c"}, [special]),
        ({"error_code": "engine_error"}, [special]),
        ({"batch_id": "batch_1"}, [special]),
        ({"request_id": "req_1"}, [special]),
        ({"refused": True}, [special]),
        ({"refused": False}, [calm]),
        ({"has_body": True}, [special]),
        ({"has_body": False}, [calm, plain]),
        ({"feedback": FeedbackFilter("rating")}, [special, calm]),
        ({"feedback": FeedbackFilter("rating", ("false", False))}, [special]),
        ({"feedback": FeedbackFilter("stars", (3.0,))}, [special]),
        ({"score": ScoreFilter("help")}, [special, calm]),
        ({"score": ScoreFilter("help", 2)}, [special]),
        ({"score": ScoreFilter("help", None, 1)}, [calm]),
        ({"score": ScoreFilter("other")}, []),
        ({"models": ("x",), "refused": False}, []),
    ]  # fmt: skip
    for project_id in (None, 1):
        for conditions, expected in cases:
            filters = RequestFilters(project_id=project_id, **conditions)
            if project_id is None and "end_user" in conditions:
                continue  # only of projects that exist: see the next test
            assert await found(database, filters) == [one.id for one in expected], (project_id, conditions)
    assert await found(database, RequestFilters(project_id=2)) == []


async def test_an_end_user_is_found_in_all_projects(database: AsyncEngine, owner: Owner, other_owner: Owner) -> None:
    ours, theirs = (
        [logged(NOON - hour * HOUR, project_id=one.project_id, end_user="ann") for hour in hours]
        for one, hours in ((owner, (0, 2)), (other_owner, (1, 3)))
    )
    await write(database, [*ours, *theirs, logged(project_id=owner.project_id, end_user="bob")])
    expected = [ours[0].id, theirs[0].id, ours[1].id, theirs[1].id]
    assert await found(database, RequestFilters(end_user="ann")) == expected
    assert await found(database, RequestFilters(end_user="ann"), limit=3) == expected[:3]
    after = Cursor(NOON - HOUR, theirs[0].id)
    assert await found(database, RequestFilters(end_user="ann"), after=after) == expected[2:]


async def test_what_a_request_shows(database: AsyncEngine, owner: Owner) -> None:
    one = logged(project_id=owner.project_id, feedback=[("rating", True), ("word", "good")], scores=[("help", 4.5)])
    await write(database, [one])
    (shown,) = (await LoggedRequestStore(database).page(RequestFilters(), limit=5)).requests
    assert shown == await LoggedRequestStore(database).get(one.id, owner.project_id)
    assert (shown.project, shown.model, shown.ended_at) == ("test", "m", NOON)
    assert [(feedback.metric, feedback.value) for feedback in shown.feedback] == [("rating", True), ("word", "good")]
    assert [(score.rubric, score.score, score.judge_model) for score in shown.scores] == [("help", 4.5, "judge")]
    assert await LoggedRequestStore(database).get(one.id, owner.project_id + 1) is None
    assert await LoggedRequestStore(database).get(job_id_at(NOON), None) is None


async def test_a_body_that_has_expired(database: AsyncEngine, owner: Owner) -> None:
    """Its row still says that it was kept, but its data key was deleted."""
    kept = logged(project_id=owner.project_id, asked="hi")
    old = logged(NOON - DAY, project_id=owner.project_id, level="full", body="kept")
    await write(database, [kept, old])
    store = LoggedRequestStore(database)
    assert [row.body for row in (await store.page(RequestFilters(), limit=5)).requests] == ["kept", "expired"]
    found = await store.get(old.id, None)
    assert found is not None
    assert found.body == "expired"
    for has_body, one in ((True, kept), (False, old)):
        page = await store.page(RequestFilters(has_body=has_body), limit=5)
        assert [row.job_id for row in page.requests] == [one.id]
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM data_keys"))
    assert not (await store.page(RequestFilters(has_body=True), limit=5)).requests


async def test_pages_cover_all_requests_once(database: AsyncEngine, owner: Owner) -> None:
    # Several ended at the same moment, and they are in several partitions.
    moments = [NOON - DAY * (number // 7 // 2) for number in range(60)]
    rows = [logged(moment, project_id=owner.project_id, end_user="ann") for moment in moments]
    await create_partitions(database, NOON.date(), 3)
    await write(database, rows)
    expected = sorted(rows, key=lambda row: (row.columns["ended_at"], row.id), reverse=True)
    store = LoggedRequestStore(database)
    for filters in (
        RequestFilters(),
        RequestFilters(project_id=owner.project_id),
        RequestFilters(project_id=owner.project_id, end_user="ann"),
        RequestFilters(end_user="ann"),
    ):
        seen: list[str] = []
        after: Cursor | None = None
        while True:
            page = await store.page(filters, limit=7, after=after)
            seen += [row.job_id for row in page.requests]
            assert not page.partial
            if page.cursor is None:
                break
            after = Cursor.read(str(page.cursor))
        assert seen == [row.id for row in expected], filters


async def test_a_page_reads_a_bounded_number_of_rows(database: AsyncEngine, owner: Owner) -> None:
    rows = [logged(NOON - number * HOUR, error_code="rare" if number == 9 else None) for number in range(12)]
    await write(database, rows)
    store, filters = LoggedRequestStore(database), RequestFilters(project_id=1, error_code="rare")
    first = await store.page(filters, limit=3, size=5)
    assert (list(first.requests), first.partial) == ([], True)
    assert first.cursor == Cursor(rows[4].columns["ended_at"], rows[4].id)
    second = await store.page(filters, limit=3, after=first.cursor, size=5)
    assert [row.job_id for row in second.requests] == [rows[9].id]
    assert second.partial
    last = await store.page(filters, limit=3, after=second.cursor, size=5)
    assert (list(last.requests), last.cursor, last.partial) == ([], None, False)


async def test_a_page_is_one_query(database: AsyncEngine, owner: Owner) -> None:
    await write(database, [logged(feedback=[("rating", True)], scores=[("help", 1)]) for _ in range(20)])
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(database.sync_engine, "before_cursor_execute", record)
    page = await LoggedRequestStore(database).page(RequestFilters(), limit=10)
    event.remove(database.sync_engine, "before_cursor_execute", record)
    assert len(page.requests) == 10
    assert all(request.feedback and request.scores for request in page.requests)
    assert len([statement for statement in statements if "FROM" in statement]) == 1


async def create_partitions(database: AsyncEngine, last: Any, days: int) -> None:
    async with database.connect() as connection:
        for number in range(days):
            day = last - timedelta(days=number)
            statement = text("SELECT create_log_partition('request_log', :day, 1000)")
            assert (await connection.execute(statement, {"day": day})).scalar_one() == "created"


# A month, of which each day has a partition. One project has most requests, and another one few, on a single day.
ROWS = """
INSERT INTO request_log (
    job_id, ended_at, project_id, key_id, end_user, model, requested_model, status, created_at, level
)
SELECT 'job_' || lpad(n::text, 32, '0'), at,
    CASE WHEN n BETWEEN 11000 AND 11100 THEN CAST(:few AS bigint) ELSE CAST(:many AS bigint) END, 1,
    'user ' || n % 500, 'm', 'm', 'completed', at, 'metadata'
FROM generate_series(1, 30000) AS n, LATERAL (SELECT CAST(:noon AS timestamptz) - n * interval '80 s' AS at) AS t
"""
PAGES: dict[str, tuple[RequestFilters, str]] = {
    "all": (RequestFilters(), "ended_at_job_id"),
    "of a project": (RequestFilters(project_id=-1), "project_id_ended_at_job_id"),
    "of an end user": (RequestFilters(project_id=-1, end_user="user 7"), "project_id_end_user_ended_at_job_id"),
    "of an end user in all projects": (RequestFilters(end_user="user 7"), "project_id_end_user_ended_at_job_id"),
    "with feedback": (
        RequestFilters(project_id=-1, feedback=FeedbackFilter("rating", (True,))), "project_id_ended_at_job_id",
    ),
}  # fmt: skip


async def plan_of(database: AsyncEngine, filters: RequestFilters) -> list[str]:
    """The plan of a page, as PostgreSQL makes it in the page's transaction."""
    statements: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(database.sync_engine, "before_cursor_execute", record)
    await LoggedRequestStore(database).page(filters, limit=50)
    event.remove(database.sync_engine, "before_cursor_execute", record)
    (settings, values), (page, parameters) = statements
    async with database.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        async with driver.transaction():
            await driver.fetch(settings, *values)
            return [row[0] for row in await driver.fetch(f"EXPLAIN {page}", *parameters)]


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_reads_ranges_of_indexes_and_no_other_partitions(
    database: AsyncEngine, owner: Owner, other_owner: Owner, name: str
) -> None:
    await create_partitions(database, NOON.date(), 28)
    async with database.connect() as connection:
        parameters = {"noon": NOON, "many": owner.project_id, "few": other_owner.project_id}
        await connection.execute(text(ROWS), parameters)
        await connection.execute(text("ANALYZE request_log"))
    filters, columns = PAGES[name]
    for project in (owner, other_owner):
        if filters.project_id is not None:
            filters = replace(filters, project_id=project.project_id)
        plan = await plan_of(database, replace(filters, end=NOON - 5 * DAY))
        scans = [line for line in plan if "Scan" in line and "request_log" in line]
        days = {(NOON - number * DAY).strftime("request_log_%Y%m%d") for number in range(28)}
        read = {day for day in days for line in scans if f"using {day}_{columns}_idx on {day}" in line}
        newer = {(NOON - number * DAY).strftime("request_log_%Y%m%d") for number in range(5)}
        assert read == days - newer, plan
        assert len(scans) == len(read) + 1, "and the default partition"
        # Rows are read in their order, so that no more are than the page needs; only its own are sorted at the end.
        sorts = [line for line in plan if "Sort  (" in line]
        assert len(sorts) == (2 if name == "of an end user in all projects" else 1), plan
