"""First tokens with Redis and PostgreSQL on other machines: each round trip to them takes 1 ms longer.

A proxy in front of both delays all bytes by 0.5 ms in each direction (`benchmarks.delay_proxy`). The same requests also
run on an instance without it. The delay of the first token is reported in milliseconds and in round trips, whose time
is measured through the proxy.
"""

from __future__ import annotations

import contextlib
from time import perf_counter

from redis import Redis

from benchmarks.bench import Bench
from benchmarks.scenarios.upstream import STEADY, first_tokens, gateway_plan, relaying, steady_upstream
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace

STREAMS = (1, 16)
DELAY_MS = 0.5
# Those that the goal allows.
ROUND_TRIPS = 4


def run(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(steady_upstream(bench))
        near = stack.enter_context(relaying(bench, alone))
        far = stack.enter_context(relaying(bench, alone, name="remote", delay_ms=DELAY_MS))
        for system in (near, far):
            plan = gateway_plan(system, STEADY, 16, concurrency=16, requests=64)
            bench.measure(system.name, system.processes, plan)
        for repeat in bench.repeats():
            trip_ms = _round_trip_ms(far) - _round_trip_ms(near)
            bench.add(far.name, "round trip", trip_ms, "ms")
            for streams in STREAMS:
                added = first_tokens(bench, repeat, [alone, near, far], streams)
                trips = (added[far.name] - added[near.name]) / trip_ms
                bench.add(far.name, f"added to p50 at {streams}, in round trips", trips, "")
                rest_ms = added[far.name] - ROUND_TRIPS * trip_ms
                bench.add(far.name, f"added to p50 at {streams}, without {ROUND_TRIPS} round trips", rest_ms, "ms")


def _round_trip_ms(system: Headrace) -> float:
    with Redis.from_url(system.settings["REDIS_URL"]) as redis:
        redis.ping()
        return 1000 * percentile(sorted(_seconds(redis) for _ in range(200)), 0.5)


def _seconds(redis: Redis) -> float:
    began = perf_counter()
    redis.ping()
    return perf_counter() - began
