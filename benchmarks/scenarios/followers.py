"""Followers that wait: what one more open stream costs an API process, and what it does to other calls."""

from __future__ import annotations

import psutil

from benchmarks import generator
from benchmarks.bench import Bench
from benchmarks.generator import Running
from benchmarks.load.plan import ID, Plan
from benchmarks.scenarios.submits import JOBS, ORPHAN, submit
from benchmarks.systems.headrace import Headrace, headrace

CALLS_PER_SECOND = 20.0


def run(bench: Bench) -> None:
    count = bench.pick(2000, 200)
    heartbeat_s = bench.pick(15.0, 3.0)
    for _ in bench.repeats():
        # A fresh process each time: memory that was given back is not measured twice.
        folder = bench.folder / f"repeat-{_}"
        with headrace(folder, [ORPHAN], HEADRACE_PING_S=heartbeat_s) as system:
            _once(bench, system, count, heartbeat_s)


def _once(bench: Bench, system: Headrace, count: int, heartbeat_s: float) -> None:
    ids = generator.run(submit(system, concurrency=16, requests=count, collect=True)).ids
    generator.run(_get(system, ids, rate=100, requests=200))
    before = _resident(system)
    seconds = 2 * heartbeat_s + 1
    hold = Plan(
        port=system.port,
        path=f"{JOBS}/{ID}/stream",
        kind="hold",
        headers=system.headers,
        ids=ids,
        seconds=seconds,
        heartbeat_s=heartbeat_s,
    )
    with Running(hold) as holding:
        holding.until_ready()
        each = (_resident(system) - before) / count
        with (
            Running(_get(system, ids, rate=CALLS_PER_SECOND, seconds=seconds - 1)) as gets,
            Running(submit(system, concurrency=4, rate=CALLS_PER_SECOND, seconds=seconds - 1)) as posts,
        ):
            got, posted = gets.summary(), posts.summary()
        held = holding.summary()
    bench.add(system.name, "followers held", held.held, "")
    bench.add(system.name, "memory a follower", each / 1024, "KB")
    bench.add(system.name, "heartbeats", held.late.count, "")
    bench.add(system.name, "latest heartbeat", held.late.worst, "ms late")
    bench.add(system.name, "GET job p99 meanwhile", got.whole.p99, "ms")
    bench.add(system.name, "POST jobs p99 meanwhile", posted.whole.p99, "ms")
    bench.add(system.name, "calls that failed", got.failed + posted.failed + held.failed, "")


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


def _resident(system: Headrace) -> int:
    """Bytes of the API process's memory."""
    resident: int = psutil.Process(system.processes.pids["api"]).memory_info().rss
    return resident
