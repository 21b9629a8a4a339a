"""The periodic queries read the rows they are for, and neither the queue nor ended jobs.

PostgreSQL plans a statement either for its parameters or, from the sixth execution on, for any: a generic plan.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.cache.store import CacheStore
from api.jobs.retention_store import RetentionStore
from api.monitoring.queue_stats import QueueStatsStore
from shared.domain.owner import Owner
from shared.postgres import claim_store, job_row_store, new_jobs
from shared.postgres.claim_store import ClaimStore
from shared.postgres.job_store import JobStore
from shared.postgres.prepared import Prepared
from shared.postgres.recovery_store import RecoveryStore
from shared.postgres.summary_deletion import delete_summaries
from tests.support.metrics import api_metrics

# Most jobs have ended, many wait, a few of those were withheld or deferred, and a few run.
ROWS = """
INSERT INTO jobs (
    id, project_id, key_id, model, status, priority, request, metadata, worker, finished_at, unreadable_at, not_before
)
SELECT 'job_' || lpad(n::text, 6, '0'), :project, :key, 'm',
    CASE WHEN n > 29990 THEN 'in_progress' WHEN n > 28000 THEN 'queued' ELSE 'completed' END, 3,
    '{}', '{}', CASE WHEN n > 29990 THEN 'w' END, CASE WHEN n <= 28000 THEN now() END,
    CASE WHEN n BETWEEN 29971 AND 29990 THEN now() END,
    CASE WHEN n BETWEEN 29951 AND 29970 THEN now() + interval '1 h' END
FROM generate_series(1, 30000) AS n
"""
# The upstreams of several models are down.
CANCELLATIONS = """
INSERT INTO upstream_cancellations (job_id, model, state, due_at, tries)
SELECT 'job_' || n, 'm' || n % 4, '{"id": "r", "data": {}}', now() + (n - 16000) * interval '1 s', 3
FROM generate_series(1, 32000) AS n
"""
# Few rows are due for retention: the first jobs have ended two hours ago, and their entries, responses and summaries
# are as old. Most of the others have an entry, a response or a summary too, and some were deleted.
RETAINED = (
    """
    INSERT INTO jobs (
        id, project_id, key_id, model, status, priority, request, metadata, finished_at, kind, decisions, cache_key,
        answered_by, deleted_at, log
    )
    SELECT 'job_' || lpad(n::text, 6, '0'), :project, :key, 'm', 'completed', 3, '{}', '{}',
        now() - CASE WHEN n <= 50 THEN interval '2 h' ELSE interval '1 s' END,
        CASE WHEN n % 10 = 1 THEN 'summary' END,
        CASE WHEN n % 10 = 1 THEN jsonb_build_object('context', jsonb_build_object(
            'conversation', 'conversation_' || n / 100, 'deleted', n > 29900)) END,
        CASE WHEN n % 10 = 2 THEN decode(lpad(to_hex(n), 64, '0'), 'hex') END,
        CASE WHEN n % 10 = 3 THEN 'job_' || lpad((n - 1)::text, 6, '0') END,
        CASE WHEN n % 10 = 4 THEN now() END, CASE WHEN n % 10 <> 4 OR n > 29900 THEN 'log' END
    FROM generate_series(1, 30000) AS n
    """,
    """
    INSERT INTO cached_answers (key, project_id, model, job_id, bytes, expires_at, created_at, used_at)
    SELECT decode(lpad(to_hex(n), 64, '0'), 'hex'), :project, 'm' || lpad((n % 1000)::text, 3, '0'),
        'job_' || lpad(n::text, 6, '0'), 10, now() + (n - 50) * interval '1 s', now(), now()
    FROM generate_series(1, 30000) AS n
    """,
    """
    INSERT INTO responses (job_id, asked, input, background, stored)
    SELECT id, '{}', '[]', false, right(id, 2) <> '05' FROM jobs
    """,
    """
    INSERT INTO idempotency_keys (key_id, key, project_id, request_sha256, job_id)
    SELECT :key, 'key ' || id, :project, 'x', id FROM jobs
    """,
    """
    INSERT INTO summaries (project_id, model, sha256, messages, summary, job_id, conversation, used_at)
    SELECT :project, 'm', decode(lpad(to_hex(n), 64, '0'), 'hex'), 1, 'text', 'job_' || lpad(n::text, 6, '0'),
        'conversation_' || n / 100, now() - CASE WHEN n <= 50 THEN interval '2 h' ELSE interval '1 s' END
    FROM generate_series(1, 30000) AS n
    """,
)
Call = Callable[[AsyncEngine], Awaitable[Any]]


async def explained(database: AsyncEngine, call: Call, *, generic: bool) -> list[str]:
    """The plans of a call's statements, line by line."""
    statements: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    run = Prepared.run

    async def recorded(prepared: Prepared, engine: AsyncEngine, parameters: Mapping[str, Any]) -> list[Any]:
        values = {**prepared._literals, **parameters}
        statements.append((prepared._sql, [values[name] for name in prepared._names]))
        return await run(prepared, engine, parameters)

    event.listen(database.sync_engine, "before_cursor_execute", record)
    with mock.patch.object(Prepared, "run", recorded):
        await call(database)
    event.remove(database.sync_engine, "before_cursor_execute", record)
    assert statements
    plan: list[str] = []
    async with database.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        for statement, parameters in statements:
            if generic:
                await driver.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE plan AS {statement}")
                values = f"({', '.join(['NULL'] * len(parameters))})" if parameters else ""
                rows = await driver.fetch(f"EXPLAIN EXECUTE plan{values}")
                await driver.execute("DEALLOCATE plan; RESET plan_cache_mode")
            else:
                rows = await driver.fetch(f"EXPLAIN {statement}", *parameters)
            plan += [row[0] for row in rows]
    return plan


async def scans_of(
    database: AsyncEngine, owner: Owner, call: Call, rows: Sequence[str] = (ROWS, CANCELLATIONS), *, generic: bool
) -> list[str]:
    """The scans of tables in the plans of a call's statements."""
    async with database.connect() as connection:
        for inserted in rows:
            await connection.execute(text(inserted), {"project": owner.project_id, "key": owner.key_id})
        await connection.execute(text("ANALYZE"))
    plan = await explained(database, call, generic=generic)
    small = ("workers", "model_pauses")
    scans = [line for line in plan if "Scan" in line and "Bitmap Heap" not in line]
    return [line for line in scans if not any(table in line for table in small)]


def recovery(call: Callable[[RecoveryStore], Awaitable[Any]]) -> Call:
    return lambda database: call(RecoveryStore(database))


CALLS: dict[str, tuple[Call, set[str]]] = {
    "overdue": (recovery(lambda store: store.overdue()), {"jobs_start_before", "jobs_finish_before", "jobs_pkey"}),
    "followers of ended jobs": (recovery(lambda store: store.orphans()), {"jobs_following", "jobs_pkey"}),
    "withheld": (recovery(lambda store: store.withheld(0, after=None, limit=10)), {"jobs_unreadable"}),
    "lost": (recovery(lambda store: store.lost()), {"jobs_running"}),
    "unfinished": (
        recovery(lambda store: store.has_unfinished("gone")),
        {"jobs_queued", "jobs_running", "upstream_cancellations_due"},
    ),
    "queued of a model": (recovery(lambda store: store.queued_of("m", limit=10, without=["job_1"])), {"jobs_queued"}),
    "queued before": (
        recovery(lambda store: store.queued_before(["m"], 3, "job_1", due_for_s=1, limit=10)),
        {"jobs_queued"},
    ),
    "waiting": (
        recovery(lambda store: store.waiting(["m"], limit=10, older_than_s=1, priorities=range(5))),
        {"jobs_queued"},
    ),
    "waiting on several names": (
        recovery(lambda store: store.waiting(["m", "n"], limit=10, older_than_s=1, priorities=range(5))),
        {"jobs_queued"},
    ),
    "deferred": (recovery(lambda store: store.deferred_for("m", 60, limit=10, without=["job_1"])), {"jobs_deferred"}),
    "movable": (recovery(lambda store: store.movable("m", 10, ["n"], without=["job_1"])), {"jobs_queued"}),
    "abandoned": (recovery(lambda store: store.abandon_cancellations(3600)), {"upstream_cancellations_created"}),
    "claims": (lambda database: ClaimStore(database, "w").list_claims(), {"jobs_running"}),
    "unreadable": (lambda database: JobStore(database).unreadable(), {"jobs_unreadable"}),
    "statistics": (
        lambda database: QueueStatsStore(database, api_metrics("m")).read(),
        {"jobs_queued", "jobs_running", "jobs_unreadable", "jobs_deferred"},
    ),
    "due": (
        lambda database: ClaimStore(database, "w").due_cancellations("m1", 50),
        {"upstream_cancellations_due", "upstream_cancellations_pkey"},
    ),
    "due of a job": (
        lambda database: ClaimStore(database, "w").due_cancellations("m1", 50, job_id="job_1"),
        {"upstream_cancellations_job", "upstream_cancellations_pkey"},
    ),
}


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("name", CALLS)
async def test_a_periodic_query_uses_indexes(database: AsyncEngine, owner: Owner, name: str, generic: bool) -> None:
    call, indexes = CALLS[name]
    scans = await scans_of(database, owner, call, generic=generic)
    # The leader of each job is looked up by an index.
    other = ("Subquery Scan", "Function Scan", "using jobs_led")
    scans = [line for line in scans if not any(one in line for one in other)]
    assert {index for index in indexes for line in scans if index in line} == indexes, scans
    assert len(scans) == len(indexes), scans


@pytest.mark.parametrize("generic", [False, True])
async def test_the_query_of_each_sweep_uses_the_indexes_of_all_that_it_looks_for(
    database: AsyncEngine, owner: Owner, generic: bool
) -> None:
    call = recovery(lambda store: store.has_work(recover=True, withheld_for_s=10))
    scans = await scans_of(database, owner, call, generic=generic)
    assert [line for line in scans if "Seq Scan" in line] == []
    used = {found[1] for line in scans if (found := re.search(r"(?:using|Bitmap Index Scan on) (\w+)", line))}
    assert used == {
        "jobs_running", "jobs_start_before", "jobs_finish_before", "jobs_pkey", "jobs_led", "jobs_following",
        "jobs_unreadable", "jobs_queued",
    }  # fmt: skip


@pytest.mark.parametrize("generic", [False, True])
async def test_models_with_queued_jobs_are_found_in_the_index(
    database: AsyncEngine, owner: Owner, generic: bool
) -> None:
    async def call(database: AsyncEngine) -> None:
        assert await RecoveryStore(database).queued_models() == ["m"]

    scans = [line for line in await scans_of(database, owner, call, generic=generic) if "jobs" in line]
    assert scans
    assert all("Index Only Scan using jobs_queued" in line for line in scans), scans


def retention(call: Callable[[RetentionStore], Awaitable[Any]]) -> Call:
    return lambda database: call(RetentionStore(database))


def cache(call: Callable[[CacheStore], Awaitable[Any]]) -> Call:
    return lambda database: call(CacheStore(database))


async def delete_conversation(database: AsyncEngine) -> None:
    async with database.connect() as connection:
        await delete_summaries(connection, 1, "conversation_7")


# A call, and the indexes by which it finds what is due.
RETENTION: dict[str, tuple[Call, set[str]]] = {
    "old jobs": (retention(lambda store: store.delete_ended(3600, 100)), {"jobs_ended"}),
    "unlogged jobs": (retention(lambda store: store.unlogged(3600, 100)), {"jobs_unlogged", "responses_unstored"}),
    "discarded summaries": (retention(lambda store: store.purge_discarded(100)), {"jobs_discarded"}),
    "answers of deleted jobs": (retention(lambda store: store.release_answers(100)), {"jobs_kept", "jobs_answered_by"}),
    "unused summaries": (retention(lambda store: store.delete_unused_summaries(3600, 100)), {"summaries_used"}),
    "summaries of a conversation": (delete_conversation, {"jobs_summaries", "summaries_conversation"}),
    "expired answers": (cache(lambda store: store.delete_expired()), {"cached_answers_expiring"}),
    "answers of a model": (
        cache(lambda store: store.purge(project_id=1, model="m012")), {"cached_answers_project"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("name", RETENTION)
async def test_retention_reads_what_is_due(database: AsyncEngine, owner: Owner, name: str, generic: bool) -> None:
    """It reads no whole table either if the plan is for any age, model and project. Only the table of summaries, which
    is small, may be read then: of an unknown limit, PostgreSQL expects a tenth of its rows."""
    call, indexes = RETENTION[name]
    scans = await scans_of(database, owner, call, RETAINED, generic=generic)
    small = ("on batches", "on summaries") if generic else ("on batches",)
    assert [line for line in scans if "Seq Scan" in line and not any(table in line for table in small)] == []
    used = {found[1] for line in scans if (found := re.search(r"(?:using|Bitmap Index Scan on) (\w+)", line))}
    assert used >= indexes or generic, scans
    assert used, scans


PREPARED = {
    "claim": claim_store._CLAIM,
    "end": claim_store._FINISH.plain,
    "end of a leader": claim_store._FINISH.keyed,
    "followers": job_row_store._SETTLE,
    "a follower": job_row_store._SETTLE_FOLLOWER,
    "lead": new_jobs.LEAD._statements[False, False],
    "follow": new_jobs.JOIN._statements[False, False],
}


@pytest.mark.parametrize("name", PREPARED)
async def test_a_statement_of_each_job_uses_indexes(database: AsyncEngine, owner: Owner, name: str) -> None:
    """Also in a generic plan, which knows nothing of the parameters, and if no job has ever followed another one."""
    async with database.connect() as connection:
        await connection.execute(text(ROWS), {"project": owner.project_id, "key": owner.key_id})
        await connection.execute(text("ANALYZE jobs"))
        driver: Any = (await connection.get_raw_connection()).driver_connection
        prepared = PREPARED[name]
        await driver.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE plan AS {prepared._sql}")
        rows = await driver.fetch(f"EXPLAIN EXECUTE plan({', '.join(['NULL'] * len(prepared._names))})")
    plan = [row[0] for row in rows]
    assert [line for line in plan if "Seq Scan" in line] == []
    assert any("Index Scan" in line for line in plan)
