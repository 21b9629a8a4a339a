"""Webhooks: jobs of few tokens end at a steady rate, and their events are delivered to a receiver on this machine.

`headrace` has one endpoint. `beside a dead endpoint` also has one that accepts requests and never answers. The CPU time
of a job is compared with that of `no endpoint`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
from sqlalchemy import text

from benchmarks.bench import Bench
from benchmarks.load.plan import NUMBER, Plan
from benchmarks.scenarios.submits import JOBS
from benchmarks.systems.headrace import Headrace, headrace
from benchmarks.webhook_receiver import Receiver, receiver
from shared.postgres.engine import connect

NAME = "quick"
MODEL = {"name": NAME, "engine": "simulated", "slots": 256, "options": {"ttft_ms": 5, "itl_ms": 1}}
BODY: dict[str, Any] = {"model": NAME, "prompt": f"{NUMBER}: name three rivers.", "max_tokens": 4, "ignore_eos": True}
RATE = 200.0
SETTINGS: dict[str, Any] = {"HEADRACE_WEBHOOK_ALLOW_HTTP": "true", "HEADRACE_WEBHOOK_ALLOW_PRIVATE": "127.0.0.0/8"}
# How long events are waited for that have not arrived when the last job has ended.
PATIENCE_S = 15.0


def run(bench: Bench) -> None:
    with (
        headrace(bench.folder, [MODEL], [NAME], **SETTINGS) as system,
        receiver() as live,
        receiver(answers=False) as dead,
    ):
        _load(bench, system, "warm-up", seconds=2.0)
        for _ in bench.repeats():
            _load(bench, system, "no endpoint")
            _subscribe(system, live)
            _load(bench, system, "headrace", live)
            _subscribe(system, dead)
            _load(bench, system, "beside a dead endpoint", live)
            system.sql("TRUNCATE webhook_endpoints, webhook_deliveries, webhook_tries")


def _subscribe(system: Headrace, to: Receiver) -> None:
    body = {"url": f"http://127.0.0.1:{to.port}/", "events": ["job.*"]}
    url = f"http://127.0.0.1:{system.port}/v1/webhooks/endpoints"
    httpx.post(url, json=body, headers=dict(system.headers), trust_env=False).raise_for_status()


def _load(bench: Bench, system: Headrace, name: str, to: Receiver | None = None, seconds: float | None = None) -> None:
    system.delete_jobs()
    duration_s = seconds or bench.pick(15.0, 3.0)
    plan = Plan(
        port=system.port, path=JOBS, headers=system.headers, body=BODY, rate=RATE, requests=round(RATE * duration_s)
    )
    summary, used = bench.measure(name, system.processes, plan)
    ends = asyncio.run(_ends(system, summary.requests))
    if seconds is not None:
        return
    bench.add_cpu(name, "CPU per job", used, summary.requests)
    if to is None:
        return
    deadline = time.monotonic() + PATIENCE_S
    while ends.keys() - to.arrived.keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    lags = sorted(1000 * (to.arrived[job_id] - ended) for job_id, ended in ends.items() if job_id in to.arrived)
    bench.add(name, "events lost", len(ends) - len(lags), f"of {len(ends)}")
    for share, percentile in ((0.5, "p50"), (0.99, "p99")):
        bench.add(name, f"end to event {percentile}", lags[int(share * (len(lags) - 1))], "ms")


async def _ends(system: Headrace, count: int) -> dict[str, float]:
    """When each job has ended, in Unix seconds, after all have."""
    query = text("SELECT id, extract(epoch FROM finished_at)::float8 AS at FROM jobs WHERE finished_at IS NOT NULL")
    engine = connect(system.database_url, pool_size=1)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            async with engine.connect() as connection:
                ends = {row.id: row.at for row in await connection.execute(query)}
            if len(ends) >= count or time.monotonic() > deadline:
                return ends
            await asyncio.sleep(0.1)
    finally:
        await engine.dispose()
