"""The statements of the overview read ranges of indexes, however many jobs there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.data.overview_store import OverviewStore
from api.console.data.statistics_store import StatisticsStore
from api.console.overview.store import ModelTimesStore
from shared.domain.owner import Owner
from tests.integration.shared.recovery.test_indexes import explained

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
# Jobs and statistics of a year; a few jobs wait, run or were rescued.
ROWS = """
INSERT INTO jobs (
    id, project_id, key_id, model, status, priority, request, metadata, created_at, finished_at, worker, deaths
)
SELECT 'job_' || lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20),
    :project, :key, 'm' || n % 3, CASE n % 1000 WHEN 1 THEN 'queued' WHEN 2 THEN 'in_progress' ELSE 'completed' END, 3,
    '{}', '{}', at, CASE WHEN n % 1000 NOT IN (1, 2) THEN at END, CASE WHEN n % 1000 = 2 THEN 'w' END,
    CASE WHEN n % 500 = 0 THEN 1 ELSE 0 END
FROM generate_series(1, 30000) AS n, LATERAL (SELECT CAST(:now AS timestamptz) - n * interval '17 min' AS at) AS t
"""
STATISTICS = """
INSERT INTO job_statistics (minute, model, interactive, ended, errors, tokens, first_tokens, waits)
SELECT date_trunc('minute', CAST(:now AS timestamptz)) - n * interval '1 min', model, true, '{"completed": 3}', '{}', 9,
    '{"100": 3}', '{}'
FROM generate_series(5, 20000) AS n, unnest(ARRAY['', 'm0', 'm1']) AS model
"""
CALLS: dict[str, tuple[Callable[[AsyncEngine], Awaitable[Any]], set[str]]] = {
    "charts": (
        lambda database: OverviewStore(database).charts(NOW - timedelta(hours=1), NOW),
        {"jobs_ended", "job_statistics_pkey"},
    ),
    "charts of a model": (
        lambda database: OverviewStore(database).charts(NOW - timedelta(hours=1), NOW, model="m1"),
        {"job_statistics_pkey"},
    ),
    "first tokens by model": (
        lambda database: ModelTimesStore(database).first_tokens(NOW - timedelta(hours=1), NOW),
        {"jobs_ended", "job_statistics_pkey"},
    ),
    "live": (
        lambda database: OverviewStore(database).live(["m0"], NOW - timedelta(hours=1)),
        {"jobs_queued", "jobs_running", "jobs_rescued"},
    ),
    "counting": (
        lambda database: StatisticsStore(database).count(NOW - timedelta(minutes=5), NOW),
        {"jobs_ended"},
    ),
}


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("name", CALLS)
async def test_a_statement_of_the_overview_uses_indexes(
    database: AsyncEngine, owner: Owner, name: str, generic: bool
) -> None:
    call, indexes = CALLS[name]
    async with database.connect() as connection:
        parameters = {"project": owner.project_id, "key": owner.key_id, "now": NOW}
        await connection.execute(text(ROWS), parameters)
        await connection.execute(text(STATISTICS), {"now": NOW})
        await connection.execute(text("ANALYZE jobs, job_statistics"))
    plan = await explained(database, call, generic=generic)
    scans = [line for line in plan if "Scan" in line and "job" in line]
    assert not [line for line in scans if "Seq Scan" in line], plan
    assert {index for index in indexes for line in scans if f" {index} " in line} == indexes, plan
