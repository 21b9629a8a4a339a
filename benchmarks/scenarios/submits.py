"""Durable submits: one API process, no worker, a commit with fsync before each 202."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import Bench
from benchmarks.load.plan import NUMBER, Plan
from benchmarks.systems.headrace import Headrace, headrace

ORPHAN: dict[str, Any] = {"name": "orphan", "engine": "simulated"}
JOBS = "/v1/jobs"
BODY: dict[str, Any] = {
    "model": "orphan",
    "messages": [{"role": "user", "content": f"{NUMBER}: name three rivers."}],
    "max_tokens": 64,
}
CONCURRENCIES = (16, 64)


def submit(system: Headrace, **plan: Any) -> Plan:
    """Return a plan that submits jobs of a model without a worker."""
    return Plan(port=system.port, path=JOBS, body=BODY, headers=system.headers, **plan)


def run(bench: Bench) -> None:
    seconds = bench.pick(6.0, 1.5)
    with headrace(bench.folder, [ORPHAN]) as system:
        bench.measure(system.name, system.processes, submit(system, concurrency=16, seconds=1.0))
        for _ in bench.repeats():
            for concurrency in CONCURRENCIES:
                system.delete_jobs()
                plan = submit(system, concurrency=concurrency, seconds=seconds, warm_up=concurrency)
                summary, used = bench.measure(system.name, system.processes, plan)
                bench.add(system.name, f"submits/s at {concurrency}", summary.per_second, "/s")
                bench.add(system.name, f"submit p50 at {concurrency}", summary.latency.p50, "ms")
                bench.add(system.name, f"submit p99 at {concurrency}", summary.latency.p99, "ms")
                bench.add_cpu(system.name, f"CPU per submit at {concurrency}", used, summary.requests)
