"""Followers of waiting jobs: memory per open stream of an API process, and the effect on other calls.

First the queue does not move. Then urgent jobs are submitted ahead of it, so that each follower receives a new queue
position every second.
"""

from __future__ import annotations

from dataclasses import replace

import psutil

from benchmarks import generator
from benchmarks.bench import Bench
from benchmarks.generator import Running
from benchmarks.load.plan import ID, Plan, Summary
from benchmarks.scenarios.submits import BODY, JOBS, ORPHAN, submit
from benchmarks.systems.headrace import Headrace, headrace

CALLS_PER_SECOND = 20.0


def run(bench: Bench) -> None:
    count = bench.pick(2000, 200)
    heartbeat_s = bench.pick(15.0, 3.0)
    for _ in bench.repeats():
        # A new process for each repeat: memory that a process has freed would be reused and not measured.
        folder = bench.folder / f"repeat-{_}"
        with headrace(folder, [ORPHAN], HEADRACE_PING_S=heartbeat_s) as system:
            _once(bench, system, count, heartbeat_s)


def _once(bench: Bench, system: Headrace, count: int, heartbeat_s: float) -> None:
    ids = generator.run(submit(system, concurrency=16, requests=count, collect=True)).ids
    generator.run(_get(system, ids, rate=100, requests=200))
    before = _resident(system)
    seconds = 2 * heartbeat_s + 1
    moving_s = bench.pick(20.0, 4.0)
    hold = Plan(
        port=system.port,
        path=f"{JOBS}/{ID}/stream",
        kind="hold",
        headers=system.headers,
        ids=ids,
        seconds=seconds + moving_s,
        heartbeat_s=heartbeat_s,
    )
    with Running(hold) as holding:
        holding.wait_until_ready()
        each = (_resident(system) - before) / count
        got, posted = _calls(system, ids, submit(system, concurrency=4, rate=CALLS_PER_SECOND, seconds=seconds - 1))
        urgent = submit(system, concurrency=4, rate=CALLS_PER_SECOND, seconds=moving_s - 1)
        urgent = replace(urgent, body={**BODY, "priority": 0})
        cpu = _cpu_seconds(system)
        got_moving, posted_moving = _calls(system, ids, urgent)
        cpu = _cpu_seconds(system) - cpu
        held = holding.summary()
    bench.add(system.name, "followers held", held.held, "")
    bench.add(system.name, "memory per follower", each / 1024, "KB")
    bench.add(system.name, "heartbeats", held.late.count, "")
    bench.add(system.name, "latest heartbeat", held.late.worst, "ms late")
    bench.add(system.name, "GET job p99 with followers", got.latency.p99, "ms")
    bench.add(system.name, "POST jobs p99 with followers", posted.latency.p99, "ms")
    bench.add(system.name, "GET job p99 while all positions change", got_moving.latency.p99, "ms")
    bench.add(system.name, "POST jobs p99 while all positions change", posted_moving.latency.p99, "ms")
    bench.add(system.name, "API CPU while all positions change", 100 * cpu / got_moving.seconds, "%")
    failed = sum(summary.failed for summary in (got, posted, got_moving, posted_moving, held))
    bench.add(system.name, "failed calls", failed, "")


def _calls(system: Headrace, ids: list[str], posting: Plan) -> tuple[Summary, Summary]:
    """Run polls and submits concurrently, for the duration of `posting`."""
    getting = _get(system, ids, rate=CALLS_PER_SECOND, seconds=posting.seconds)
    with Running(getting) as gets, Running(posting) as posts:
        return gets.summary(), posts.summary()


def _get(
    system: Headrace, ids: list[str], *, rate: float, seconds: float | None = None, requests: int | None = None
) -> Plan:
    return Plan(
        port=system.port,
        path=f"{JOBS}/{ID}",
        method="GET",
        headers=system.headers,
        ids=ids,
        concurrency=4,
        rate=rate,
        seconds=seconds,
        requests=requests,
    )


def _cpu_seconds(system: Headrace) -> float:
    return system.processes.cpu_seconds()["api"]


def _resident(system: Headrace) -> int:
    """Return the resident memory of the API process in bytes."""
    resident: int = psutil.Process(system.processes.pids["api"]).memory_info().rss
    return resident
