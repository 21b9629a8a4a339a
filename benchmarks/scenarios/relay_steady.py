"""Relay of streams at the speed of an engine: 64 at a time, which start together.

Each has 100 tokens, one every 5 ms after 20 ms. Compared with the upstream alone, and with LiteLLM's proxy.
"""

from __future__ import annotations

import contextlib

from benchmarks.bench import Bench
from benchmarks.scenarios.upstream import STEADY, gateway_plan, relaying, steady_upstream
from benchmarks.systems.litellm import litellm
from benchmarks.systems.system import System

STREAMS, TOKENS = 64, 100


def run(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(steady_upstream(bench))
        ours = stack.enter_context(relaying(bench, alone))
        theirs = stack.enter_context(litellm(bench.folder / "litellm", {STEADY: alone.url}))
        systems: list[System] = [alone, ours, theirs]
        for system in systems:
            plan = gateway_plan(system, STEADY, 16, concurrency=16, requests=64)
            bench.measure(system.name, system.processes, plan)
        for repeat in bench.repeats():
            for system in bench.rotated(systems, repeat):
                _once(bench, system)


def _once(bench: Bench, system: System) -> None:
    requests = STREAMS * bench.pick(5, 2)
    plan = gateway_plan(system, STEADY, TOKENS, concurrency=STREAMS, requests=requests)
    summary, used = bench.measure(system.name, system.processes, plan)
    if summary.tokens != requests * TOKENS:
        raise ValueError(f"{system.name} relayed {summary.tokens} tokens, expected {requests * TOKENS}")
    bench.add(system.name, f"tokens/s at {STREAMS}", summary.tokens_per_second, "/s")
    bench.add(system.name, f"first token p50 at {STREAMS}", summary.first.p50, "ms")
    bench.add(system.name, f"first token p99 at {STREAMS}", summary.first.p99, "ms")
    bench.add_cpu(system.name, f"CPU per token at {STREAMS}", used, summary.tokens)
