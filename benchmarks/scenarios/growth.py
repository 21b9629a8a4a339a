"""Queue length: the same calls with 100,000 queued jobs and with none, on two Headrace instances."""

from __future__ import annotations

import asyncio
import contextlib
import random
from time import perf_counter
from typing import Any

from sqlalchemy import text

from benchmarks.bench import Bench
from benchmarks.load.plan import ID, NUMBER, Plan
from benchmarks.scenarios.submits import JOBS, ORPHAN, submit
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace, headrace
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect

IDLE: dict[str, Any] = {"name": "idle", "engine": "simulated", "options": {"ttft_ms": 0, "itl_ms": 0}}
# Rows as a submit writes them. Their ids are in the past and sort by time.
FILL = """
INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata)
SELECT 'job_' || lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - {rows} + n), 12, '0')
           || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15),
       (SELECT min(project_id) FROM api_keys), (SELECT min(id) FROM api_keys), 'orphan', 'queued', 5,
       '{{"messages": [{{"role": "user", "content": "name three rivers."}}], "sampling": {{"max_tokens": 64}}}}', '{{}}'
FROM generate_series(1, {rows}) AS n
"""


def run(bench: Bench) -> None:
    rows = bench.pick(100_000, 20_000)
    with contextlib.ExitStack() as stack:
        systems = [
            stack.enter_context(headrace(bench.folder / name, [ORPHAN, IDLE], ["idle"], name=name))
            for name in ("empty", "full")
        ]
        for system in systems:
            bench.measure(system.name, system.processes, submit(system, concurrency=4, requests=200))
        for repeat in bench.repeats():
            for system in systems:
                _prepare(system, rows if system.name == "full" else 0)
            p99 = {system.name: _once(bench, system) for system in bench.rotated(systems, repeat)}
            bench.add("full", "claim p99, relative to an empty queue", p99["full"] / p99["empty"], "x")


def _prepare(system: Headrace, rows: int) -> None:
    system.delete_jobs()
    if rows:
        system.sql(FILL.format(rows=rows).replace(":", r"\:"))
    system.sql("VACUUM ANALYZE jobs", "CHECKPOINT")


def _once(bench: Bench, system: Headrace) -> float:
    """Measure one system. Returns the p99 of its claims in milliseconds."""
    calls = bench.pick(1000, 200)
    submits, used = bench.measure(
        system.name, system.processes, submit(system, requests=calls, warm_up=20, collect=True)
    )
    bench.add(system.name, "submit p50", submits.latency.p50, "ms")
    bench.add(system.name, "submit p99", submits.latency.p99, "ms")
    bench.add_cpu(system.name, "CPU per submit", used, submits.requests)
    for name, path in (("poll", f"{JOBS}/{ID}"), ("list", JOBS)):
        plan = Plan(
            port=system.port,
            path=path,
            method="GET",
            headers=system.headers,
            ids=submits.ids if ID in path else [],
            requests=calls if name == "poll" else calls // 2,
            warm_up=20,
        )
        summary, used = bench.measure(system.name, system.processes, plan)
        bench.add(system.name, f"{name} p50", summary.latency.p50, "ms")
        bench.add(system.name, f"{name} p99", summary.latency.p99, "ms")
    _starts(bench, system, calls // 10)
    claims = sorted(asyncio.run(_claim(system, random.sample(submits.ids, calls))))
    bench.add(system.name, "claim p50", 1000 * percentile(claims, 0.5), "ms")
    p99 = 1000 * percentile(claims, 0.99)
    bench.add(system.name, "claim p99", p99, "ms")
    return p99


async def _claim(system: Headrace, ids: list[str]) -> list[float]:
    """Claim jobs as a worker does. Returns the seconds of each claim."""
    engine = connect(system.database_url, pool_size=1)
    store = ClaimStore(engine, "bench")
    seconds = []
    try:
        # Hold a lease, so that no sweeper requeues the jobs.
        await store.heartbeat("orphan", slots=1, running=0, lease_s=3600)
        for job_id in ids:
            began = perf_counter()
            assert await store.claim(job_id) is not None
            seconds.append(perf_counter() - began)
    finally:
        await engine.dispose()
    return seconds


def _starts(bench: Bench, system: Headrace, jobs: int) -> None:
    """Measure the time from submit to start on an idle worker of another model, from the timestamps of the rows."""
    body = {"model": "idle", "prompt": f"{NUMBER}", "max_tokens": 1}
    plan = Plan(port=system.port, path=JOBS, body=body, headers=system.headers, rate=10, requests=jobs, concurrency=4)
    bench.measure(system.name, system.processes, plan)
    waits = sorted(asyncio.run(_waits(system, jobs)))
    bench.add(system.name, "submit to start p50", 1000 * percentile(waits, 0.5), "ms")
    bench.add(system.name, "submit to start p99", 1000 * percentile(waits, 0.99), "ms")


async def _waits(system: Headrace, jobs: int) -> list[float]:
    query = text(
        "SELECT extract(epoch FROM started_at - created_at)::float8 FROM jobs"
        " WHERE model = 'idle' AND finished_at IS NOT NULL"
    )
    engine = connect(system.database_url, pool_size=1)
    try:
        async with asyncio.timeout(60):
            while True:
                async with engine.connect() as connection:
                    waits = list((await connection.execute(query)).scalars())
                if len(waits) >= jobs:
                    return waits
                await asyncio.sleep(0.1)
    finally:
        await engine.dispose()
