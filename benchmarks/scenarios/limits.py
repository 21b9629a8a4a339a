"""Rate limits in Redis: what eight processes may take together, and how long the script runs in the server.

Each process takes requests and tokens of the limits of a project and of a key: four windows in one call, as API
processes do for a usual request. Together they want twice as much as the limit allows.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from redis.asyncio import Redis

from benchmarks.bench import Bench
from benchmarks.statistics import percentile
from launcher.embedded import start_valkey
from shared.redis import keys
from shared.redis.rate_limits import RateWindows, Window

PROCESSES = 8
# Calls of each process in a second, and what all of them may take in a minute.
RATE = 50
LIMIT = PROCESSES * RATE * 60 // 2
TOKENS = 700
UNLIMITED = 10**9
# Seconds that overlap with some 60 seconds, which need not begin with one of them.
OVERLAPPING = 61
SYSTEM = "headrace"
LOGGED = 200_000


def run(bench: Bench) -> None:
    valkey = start_valkey(bench.folder / "valkey", persist=False)
    try:
        for _ in bench.repeats():
            asyncio.run(_repeat(bench, valkey.url))
    finally:
        valkey.stop()


async def _repeat(bench: Bench, url: str) -> None:
    redis = Redis.from_url(url)
    try:
        await redis.flushdb()
        await redis.config_set("slowlog-log-slower-than", 0)
        await redis.config_set("slowlog-max-len", LOGGED)
        seconds = bench.pick(70, 5)
        limit = bench.pick(LIMIT, LIMIT // 20)
        loop, context = asyncio.get_running_loop(), multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, context) as pool:
            await asyncio.gather(*(loop.run_in_executor(pool, int) for _ in range(PROCESSES)))  # started
            await redis.slowlog_reset()
            counts = await asyncio.gather(
                *(loop.run_in_executor(pool, _process, url, limit, seconds) for _ in range(PROCESSES))
            )
        taken: Counter[int] = sum(counts, Counter())
        most = max(sum(taken[start + n] for n in range(OVERLAPPING)) for start in taken)
        bench.add(SYSTEM, "accepted in any 60 s, of the limit", most / limit, "x")
        bench.add(SYSTEM, "accepted", sum(taken.values()) / seconds, "/s")
        log = await redis.slowlog_get(LOGGED)
        took = sorted(entry["duration"] for entry in log if entry["command"].startswith(b"EVALSHA"))
        bench.add(SYSTEM, "script p50, 4 windows", percentile(took, 0.5), "µs")
        bench.add(SYSTEM, "script p99, 4 windows", percentile(took, 0.99), "µs")
    finally:
        await redis.aclose()


def _process(url: str, limit: int, seconds: float) -> Counter[int]:
    """The number of requests that one process was allowed, by second of the server's clock."""
    return asyncio.run(_calls(url, limit, seconds))


async def _calls(url: str, limit: int, seconds: float) -> Counter[int]:
    redis = Redis.from_url(url)
    windows, taken = RateWindows(redis), Counter[int]()
    wanted = [
        Window(keys.rate_window(1, scope, unit), amount, most)
        for scope, most in (("", limit), ("k1", UNLIMITED))
        for unit, amount, most in (("requests", 1, most), ("tokens", TOKENS, UNLIMITED))
    ]
    try:
        began = time.monotonic()
        for number in range(round(seconds * RATE)):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            outcome = await windows.take(wanted)
            if outcome.taken:
                taken[outcome.states[0].second] += 1
    finally:
        await redis.aclose()
    return taken
