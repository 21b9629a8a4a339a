"""Reports of usage over the sums of ten million entries of the ledger, and how fast entries are added to the sums.

Each row of the sums stands for the requests of one end user within a quarter of an hour, of which there are ten. The
rows are in the order of time, as they are written, and those of the last day are not yet vacuumed.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import httpx
from sqlalchemy import text

from benchmarks.bench import Bench
from benchmarks.scenarios.submits import ORPHAN
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace, headrace
from shared.postgres.engine import connect
from shared.postgres.usage_sums import UsageSums

DAYS, PROJECTS, USERS, ENTRIES = 30, 50, 200, 10
_PROJECTS = f"INSERT INTO projects (name) SELECT 'project ' || n FROM generate_series(1, {PROJECTS}) AS n"  # noqa: S608
_SUMS = f"""
INSERT INTO usage_sums
SELECT
    date_bin('15 minutes', now() - interval '{DAYS} days' * (1 - n / {{rows}}::float8), '2000-01-01Z'),
    (SELECT min(id) FROM projects WHERE name LIKE 'project %') + n % {PROJECTS}, n % {PROJECTS},
    'user ' || floor(random() * {USERS}), 'generate', 'auto', 'model ' || floor(random() * 4), 'default', false,
    {ENTRIES}, 0, {ENTRIES}, 9000, 3000, 0, 0, 2000, 0, 0.0123, 0.0119, 0, 0
FROM generate_series({{first}}, {{last}}) AS n
ON CONFLICT DO NOTHING
"""  # noqa: S608
_ENTRIES = f"""
INSERT INTO usage_events (
    job_id, attempt, ended_at, kind, project_id, key_id, end_user, requested_model, model, outcome, final, input_fresh,
    input_cache_read, input_cache_write_5m, input_cache_write_1h, output_text, output_reasoning, total_tokens, source,
    cost, charge
)
SELECT
    'bench ' || n, 1, now() - random() * interval '1 hour', 'generate', n % {PROJECTS}, n % {PROJECTS},
    'user ' || n / {PROJECTS} % {USERS}, 'auto', 'model ' || n % 4, 'completed', true, 900, 300, 0, 0, 200, 0, 1400,
    'engine', 0.00123, 0.00119
FROM generate_series({{first}}, {{last}}) AS n
"""  # noqa: S608
# Entries that one transaction writes.
CHUNK = 500
# Rows of the sums that one statement writes.
SUMS_CHUNK = 50_000
SYSTEM = "headrace"
MONTH_OF_PROJECT = "cost by user and day, a month of a project"
DAY_OF_ALL = "cost by user, a day of all projects"
MONTH_OF_ALL = "cost by user and day, a month of all projects"


def run(bench: Bench) -> None:
    with headrace(bench.folder, [ORPHAN]) as system:
        entries = bench.pick(10_000_000, 100_000)
        bench.say(f"generating the sums of {entries:,} entries")
        rows = entries // ENTRIES
        last_day = rows - rows // DAYS + 1
        before, after = _sums(range(1, last_day), rows), _sums(range(last_day, rows + 1), rows)
        system.sql(_PROJECTS, *before, "VACUUM ANALYZE usage_sums", *after, "CHECKPOINT")
        for _ in bench.repeats():
            _reports(bench, system, entries)
        for repeat in bench.repeats():
            asyncio.run(_roll_up(bench, system, repeat))


def _sums(numbers: range, rows: int) -> list[str]:
    """The statements that write the rows of these numbers, of `rows` rows in all."""
    chunks = [numbers[first : first + SUMS_CHUNK] for first in range(0, len(numbers), SUMS_CHUNK)]
    return [_SUMS.format(first=chunk[0], last=chunk[-1], rows=rows) for chunk in chunks]


def _reports(bench: Bench, system: Headrace, entries: int) -> None:
    today = datetime.now(UTC).date()
    by_user_and_day: dict[str, Any] = {"group_by": ["day", "user"], "time_zone": "Europe/Berlin"}
    queries: dict[str, dict[str, Any]] = {
        MONTH_OF_PROJECT: {**by_user_and_day, "project": "project 7"},
        DAY_OF_ALL: {"group_by": "user", "start": str(today - timedelta(days=1)), "end": str(today)},
        MONTH_OF_ALL: by_user_and_day,
    }
    with httpx.Client(base_url=f"http://127.0.0.1:{system.port}", headers=system.headers, timeout=60) as client:
        for name, params in queries.items():
            took = []
            for _ in range(bench.pick(20, 5)):
                began = perf_counter()
                client.get("/v1/usage", params=params).raise_for_status()
                took.append(1000 * (perf_counter() - began))
            bench.add(SYSTEM, f"{name} p95, {entries:,} entries", percentile(sorted(took), 0.95), "ms")


async def _roll_up(bench: Bench, system: Headrace, repeat: int) -> None:
    """The speed at which entries are added to the sums, without the API, which would add them too."""
    count = bench.pick(100_000, 2_000)
    engine = connect(system.database_url, pool_size=2)
    sums = UsageSums(engine)
    try:
        async with engine.connect() as connection:
            # Locked, so that the API does not add them before they are all there.
            async with engine.connect() as lock:
                await lock.execution_options(isolation_level="READ COMMITTED")
                await lock.execute(text("SELECT FROM usage_watermark FOR UPDATE"))
                for first in range(repeat * count, (repeat + 1) * count, CHUNK):
                    await connection.execute(text(_ENTRIES.format(first=first, last=first + CHUNK - 1)))
                await lock.rollback()
            began = perf_counter()
            while (await sums.state()).due:
                if await sums.add() is None:
                    await asyncio.sleep(0.05)
            bench.add(SYSTEM, "entries added to the sums", count / (perf_counter() - began), "/s")
    finally:
        await engine.dispose()
