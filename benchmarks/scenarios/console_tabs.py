"""The overview open in many tabs: the CPU time that it costs the API, and the first tokens of jobs beside it.

Without tabs and with them in turns, on an idle installation, and while jobs are streamed.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks import console_pages
from benchmarks.bench import Bench
from benchmarks.scenarios.upstream import STEADY, STREAM_S, TOKENS, gateway_plan, relaying, steady_upstream
from benchmarks.systems.headrace import Headrace

TABS = 50
STREAMS = 16


def run(bench: Bench) -> None:
    with steady_upstream(bench) as steady, relaying(bench, steady) as system:
        warm_up = gateway_plan(system, STEADY, 16, concurrency=STREAMS, requests=64)
        bench.measure(system.name, system.processes, warm_up)
        for repeat in bench.repeats():
            idle, first = {}, {}
            for tabs in bench.rotated([0, TABS], repeat):
                with ExitStack() as stack:
                    if tabs:
                        stack.enter_context(console_pages.tabs(system, tabs))
                    idle[tabs] = _idle(bench, system, tabs)
                    first[tabs] = _first_tokens(bench, system, tabs)
            bench.add(system.name, f"CPU of the API added by {TABS} tabs", idle[TABS] - idle[0], "%")
            bench.add(system.name, f"added to p50 by {TABS} tabs", first[TABS] - first[0], "ms")


def _idle(bench: Bench, system: Headrace, tabs: int) -> float:
    """The share of a core that the API uses while nothing happens, in per cent."""
    before, began = system.processes.cpu_seconds()["api"], time.monotonic()
    time.sleep(bench.pick(20.0, 3.0))
    used = system.processes.cpu_seconds()["api"] - before
    share = 100 * used / (time.monotonic() - began)
    bench.add(system.name, f"CPU of the idle API, {tabs} tabs", share, "%")
    return share


def _first_tokens(bench: Bench, system: Headrace, tabs: int) -> float:
    """The p50 of first tokens of 16 streams, in milliseconds."""
    requests = bench.pick(320, 32)
    plan = gateway_plan(system, STEADY, TOKENS, concurrency=STREAMS, requests=requests, spread_s=STREAM_S)
    summary, used = bench.measure(system.name, system.processes, plan)
    bench.add(system.name, f"first token p50 at {STREAMS}, {tabs} tabs", summary.first.p50, "ms")
    bench.add(system.name, f"first token p99 at {STREAMS}, {tabs} tabs", summary.first.p99, "ms")
    bench.add_cpu(system.name, f"CPU per request of {TOKENS} tokens, {tabs} tabs", used, requests)
    return summary.first.p50
