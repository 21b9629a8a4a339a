"""Deleting jobs after their retention period, in batches."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs import retention
from api.jobs.retention import Retention
from api.jobs.retention_store import RetentionStore
from shared.domain.owner import Owner
from shared.redis.event_log import EventLog
from tests.support.metrics import api_metrics

# Jobs without and with an entry in the response cache.
ROWS = """
INSERT INTO jobs (
    id, project_id, key_id, model, status, priority, request, metadata, output, log, cache_key, finished_at
)
SELECT 'job_' || n, :project, :key, 'm', 'completed', 3, '{}', '{}', '[]', 'log',
    CASE WHEN n > CAST(:plain AS int) THEN decode(lpad(to_hex(n), 64, '0'), 'hex') END, now() - n * interval '1 h'
FROM generate_series(1, CAST(:plain AS int) + CAST(:cached AS int)) AS n
"""
# The oldest one, and one that has its answer and ended just now.
SHARED = """
INSERT INTO jobs (
    id, project_id, key_id, model, status, priority, request, metadata, output, log, cache_key, answered_by, finished_at
)
VALUES ('source', :project, :key, 'm', 'completed', 3, '{}', '{}', '[]', 'log', '\\x00', NULL, now() - interval '99 h'),
       ('hit', :project, :key, 'm', 'completed', 3, '{}', '{}', NULL, NULL, NULL, 'source', now())
"""
DISCARDED = """
INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, kind, decisions, finished_at)
VALUES ('ended', :project, :key, 'm', 'completed', 3, '{"prompt": "x"}', '{}', 'summary',
        '{"context": {"deleted": true}}', now()),
       ('running', :project, :key, 'm', 'in_progress', 3, '{"prompt": "x"}', '{}', 'summary',
        '{"context": {"deleted": true}}', NULL),
       ('kept', :project, :key, 'm', 'completed', 3, '{"prompt": "x"}', '{}', 'summary', '{"context": {}}', now())
"""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "PAUSE_S", 0)


@pytest.mark.parametrize(("plain", "cached"), [(7, 0), (0, 7), (6, 1), (3, 4)])
async def test_a_sweep_deletes_all_jobs_that_are_due(
    database: AsyncEngine, owner: Owner, logs: EventLog, plain: int, cached: int
) -> None:
    """The answer that another job has is kept, and does not end the sweep."""
    async with database.begin() as connection:
        values = {"project": owner.project_id, "key": owner.key_id}
        await connection.execute(text(ROWS), {**values, "plain": plain, "cached": cached})
        await connection.execute(text(SHARED), values)
    sweeper = Retention(RetentionStore(database), logs, api_metrics(), retention_s=1800)
    assert await sweeper.sweep() == plain + cached + 1
    async with database.connect() as connection:
        left = (await connection.execute(text("SELECT id, log FROM jobs ORDER BY id"))).all()
    assert [(row.id, row.log) for row in left] == [("hit", None), ("source", "log")]
    assert await sweeper.sweep() == 0


async def test_the_jobs_of_summaries_that_were_deleted_before_their_end_are_purged(
    database: AsyncEngine, owner: Owner, logs: EventLog
) -> None:
    """The process that waited for the summary, and would have purged its job, may have died."""
    async with database.begin() as connection:
        await connection.execute(text(DISCARDED), {"project": owner.project_id, "key": owner.key_id})
    assert await Retention(RetentionStore(database), logs, api_metrics(), retention_s=0).sweep() == 1
    async with database.connect() as connection:
        rows = await connection.execute(text("SELECT id FROM jobs WHERE CAST(request AS text) <> '{}' ORDER BY id"))
        assert list(rows.scalars()) == ["kept", "running"]
