"""Pages of the request log over ten million requests of thirty days, in daily partitions.

Half of the requests are of one project. One in a hundred has feedback, and one in ten thousand has failed, so that the
search for failures reads as many rows as a page may.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import httpx

from benchmarks.bench import Bench
from benchmarks.scenarios.submits import ORPHAN
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace, headrace

DAYS, PROJECTS, USERS = 30, 50, 20_000
_PROJECTS = f"INSERT INTO projects (name) SELECT 'project ' || n FROM generate_series(1, {PROJECTS}) AS n"  # noqa: S608
_PARTITIONS = f"""
SELECT create_log_partition('request_log', (now() AT TIME ZONE 'UTC')::date - n, 10000)
FROM generate_series(0, {DAYS}) AS n
"""  # noqa: S608
_ROWS = f"""
INSERT INTO request_log (
    job_id, ended_at, project_id, key_id, end_user, request_id, kind, model, requested_model, status, error_code,
    created_at, first_token_at, input_tokens, output_tokens, level, body, refused, refusal_source
)
SELECT
    'job_' || lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(n), 19, '0'),
    at + interval '2 s', first.id + floor({PROJECTS} * power(random(), 5))::int, 1,
    'user ' || floor(random() * {USERS}), 'req_' || n, NULL, 'model ' || n % 4, 'auto',
    CASE WHEN n % 10000 = 0 THEN 'failed' ELSE 'completed' END, CASE WHEN n % 10000 = 0 THEN 'engine_error' END, at,
    at + interval '100 ms', 900, 200, 'metadata', 'none', n % 50 = 0, 'classifier'
FROM generate_series({{first}}, {{last}}) AS n,
    LATERAL (SELECT now() - interval '{DAYS} days' * (1 - n / {{rows}}::float8) AS at) AS submitted,
    (SELECT min(id) AS id FROM projects WHERE name LIKE 'project %') AS first
"""  # noqa: S608
_FEEDBACK = """
INSERT INTO feedback (project_id, job_id, metric, value, source, model)
SELECT project_id, job_id, 'rating', to_jsonb(CASE WHEN random() < 0.8 THEN 'up' ELSE 'down' END), 'key', model
FROM request_log
WHERE right(job_id, 2) = '00'
"""
CHUNK = 100_000
SYSTEM = "headrace"
NEWEST = "newest page of all projects"
DEEP = "page of a project, two weeks back"
OF_USER = "page of an end user, of all projects"
WITH_FEEDBACK = "page of a project with bad feedback"
RARE = "page of failures, which are rare"
RETENTION = "retention, a day of the log"


def run(bench: Bench) -> None:
    with headrace(bench.folder, [ORPHAN]) as system:
        rows = bench.pick(10_000_000, 100_000)
        bench.say(f"generating {rows:,} requests")
        chunks = [(first, min(first + CHUNK - 1, rows)) for first in range(1, rows + 1, CHUNK)]
        filled = [_ROWS.format(first=first, last=last, rows=rows) for first, last in chunks]
        system.sql(_PROJECTS, _PARTITIONS, *filled, _FEEDBACK, "VACUUM ANALYZE request_log, feedback", "CHECKPOINT")
        for repeat in bench.repeats():
            _pages(bench, system, rows)
            _retention(bench, system, DAYS - 1 - repeat, rows)


def _pages(bench: Bench, system: Headrace, rows: int) -> None:
    back = (datetime.now(UTC) - timedelta(days=DAYS / 2)).isoformat()
    queries: Mapping[str, dict[str, Any]] = {
        NEWEST: {},
        DEEP: {"project": "project 7", "end": back},
        OF_USER: {"user": "user 77"},
        WITH_FEEDBACK: {"project": "project 1", "feedback": "rating=down"},
        RARE: {"error_code": "engine_error"},
    }
    with httpx.Client(base_url=f"http://127.0.0.1:{system.port}", headers=system.headers, timeout=60) as client:
        for name, params in queries.items():
            took = []
            for _ in range(bench.pick(40, 5)):
                began = perf_counter()
                client.get("/v1/requests", params={"limit": 50, **params}).raise_for_status()
                took.append(1000 * (perf_counter() - began))
            bench.add(SYSTEM, f"{name} p95, {rows:,} requests", percentile(sorted(took), 0.95), "ms")


def _retention(bench: Bench, system: Headrace, days_ago: int, rows: int) -> None:
    """Measure how long retention takes to drop a day, with the connection that it opens."""
    began = perf_counter()
    system.sql(f"SELECT drop_log_partition('request_log', (now() AT TIME ZONE 'UTC')::date - {days_ago})")
    bench.add(SYSTEM, f"{RETENTION}, {rows:,} requests in {DAYS} days", 1000 * (perf_counter() - began), "ms")
