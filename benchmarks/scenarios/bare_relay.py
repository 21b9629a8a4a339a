"""First tokens through Headrace, next to a bare durable relay: FastAPI, one insert and aiohttp, without a queue."""

from __future__ import annotations

import contextlib

from benchmarks.bench import Bench
from benchmarks.scenarios.upstream import STEADY, first_tokens, gateway_plan, relaying, steady_upstream
from benchmarks.systems.bare import bare

STREAMS = 16


def run(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(steady_upstream(bench))
        ours = stack.enter_context(relaying(bench, alone))
        least = stack.enter_context(bare(bench.folder / "bare", "bare-relay", alone.url))
        for system in (ours, least):
            plan = gateway_plan(system, STEADY, 16, concurrency=STREAMS, requests=64)
            bench.measure(system.name, system.processes, plan)
        for repeat in bench.repeats():
            first_tokens(bench, repeat, [alone, ours, least], STREAMS)
