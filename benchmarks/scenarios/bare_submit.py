"""Durable submits, next to a bare route: FastAPI and one insert, without a queue."""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.bench import Bench
from benchmarks.load.plan import Plan
from benchmarks.scenarios.submits import BODY, JOBS, ORPHAN, submit
from benchmarks.systems.bare import bare
from benchmarks.systems.headrace import headrace

CONCURRENCY = 64


def run(bench: Bench) -> None:
    seconds = bench.pick(6.0, 1.5)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(headrace(bench.folder / "headrace", [ORPHAN]))
        least = stack.enter_context(bare(bench.folder / "bare", "bare-submit"))

        def plan(name: str, **options: Any) -> Plan:
            if name == ours.name:
                return submit(ours, concurrency=CONCURRENCY, **options)
            return Plan(port=least.port, path=JOBS, body=BODY, concurrency=CONCURRENCY, **options)

        for system in (ours, least):
            bench.measure(system.name, system.processes, plan(system.name, seconds=1.0))
        for repeat in bench.repeats():
            ours.delete_jobs()
            for system in bench.rotated([ours, least], repeat):
                measured = plan(system.name, seconds=seconds, warm_up=CONCURRENCY)
                summary, used = bench.measure(system.name, system.processes, measured)
                bench.add(system.name, f"submits/s at {CONCURRENCY}", summary.per_second, "/s")
                bench.add(system.name, f"submit p99 at {CONCURRENCY}", summary.latency.p99, "ms")
                bench.add_cpu(system.name, f"CPU per submit at {CONCURRENCY}", used, summary.requests)
