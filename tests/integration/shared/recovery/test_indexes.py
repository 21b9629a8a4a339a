"""The queries of each sweep read the rows they are for, and neither the queue nor ended jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.owner import Owner
from shared.postgres.recovery_store import RecoveryStore

# Most jobs have ended, many wait, and a few of those were withheld.
ROWS = """
INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, finished_at, unreadable_at)
SELECT 'job_' || lpad(n::text, 6, '0'), :project, :key, 'm', CASE WHEN n > 5000 THEN 'queued' ELSE 'completed' END, 3,
    '{}', '{}', CASE WHEN n <= 5000 THEN now() END, CASE WHEN n > 6980 THEN now() END
FROM generate_series(1, 7000) AS n
"""


async def scans_of(database: AsyncEngine, owner: Owner, call: Callable[[RecoveryStore], Awaitable[Any]]) -> list[str]:
    """The scans of tables in the plan of a call's statement."""
    statements: list[tuple[str, Any]] = []
    event.listen(
        database.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, parameters, *_: statements.append((statement, parameters)),
    )
    async with database.connect() as connection:
        await connection.execute(text(ROWS), {"project": owner.project_id, "key": owner.key_id})
        await connection.execute(text("ANALYZE jobs"))
        statements.clear()
        await call(RecoveryStore(database))
        ((statement, parameters),) = statements
        driver: Any = (await connection.get_raw_connection()).driver_connection
        plan = [row[0] for row in await driver.fetch(f"EXPLAIN {statement}", *parameters)]
    return [line for line in plan if "Scan" in line and "workers" not in line and "Bitmap Heap" not in line]


@pytest.mark.parametrize(
    ("call", "indexes"),
    [
        (lambda store: store.overdue(), {"jobs_start_before", "jobs_finish_before"}),
        (lambda store: store.withheld(0, after=None, limit=10), {"jobs_unreadable"}),
        (lambda store: store.lost(), {"jobs_running"}),
    ],
    ids=["overdue", "withheld", "lost"],
)
async def test_a_sweep_uses_indexes(
    database: AsyncEngine, owner: Owner, call: Callable[[RecoveryStore], Awaitable[Any]], indexes: set[str]
) -> None:
    scans = await scans_of(database, owner, call)
    assert {index for index in indexes for line in scans if index in line} == indexes, scans
    assert len(scans) == len(indexes), scans


async def test_models_with_queued_jobs_are_found_in_the_index(database: AsyncEngine, owner: Owner) -> None:
    async def call(store: RecoveryStore) -> None:
        assert await store.queued_models() == ["m"]

    scans = [line for line in await scans_of(database, owner, call) if "jobs" in line]
    assert scans
    assert all("Index Only Scan using jobs_queued" in line for line in scans), scans
