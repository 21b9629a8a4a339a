"""The response cache: the first token of a cached answer, next to the API's own overhead, a submit with its commit."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import Bench
from benchmarks.load.plan import Plan
from benchmarks.scenarios.submits import ORPHAN, submit
from benchmarks.systems.headrace import Headrace, headrace

MODEL = "repeated"
TOKENS = 200
SIMULATED: dict[str, Any] = {
    "name": MODEL,
    "engine": "simulated",
    # An answer that `default_tokens` cuts would not be cached.
    "options": {"ttft_ms": 0, "itl_ms": 1, "stop_after": TOKENS, "default_tokens": 2 * TOKENS},
    "cache": {"ttl": 3600},
}
BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name three rivers."}],
    "temperature": 0,
    "stream": True,
}
CONCURRENCIES = (1, 16)


def repeat(system: Headrace, **plan: Any) -> Plan:
    """Return a plan that sends the same request again and again."""
    return Plan(port=system.port, path="/v1/chat/completions", body=BODY, headers=system.headers, **plan)


def run(bench: Bench) -> None:
    seconds = bench.pick(5.0, 1.0)
    with headrace(bench.folder, [SIMULATED, ORPHAN], [MODEL]) as system:
        bench.measure(system.name, system.processes, repeat(system, concurrency=1, requests=2))
        for _ in bench.repeats():
            for concurrency in CONCURRENCIES:
                plan = submit(system, concurrency=concurrency, seconds=seconds, warm_up=concurrency)
                submits, _ = bench.measure(system.name, system.processes, plan)
                plan = repeat(system, concurrency=concurrency, seconds=seconds, warm_up=concurrency)
                hits, used = bench.measure(system.name, system.processes, plan)
                overhead = submits.latency.p50
                bench.add(system.name, f"submit p50 at {concurrency}", overhead, "ms")
                bench.add(system.name, f"hit, first token p50 at {concurrency}", hits.first.p50, "ms")
                bench.add(system.name, f"hit, added to p50 at {concurrency}", hits.first.p50 - overhead, "ms")
                bench.add(system.name, f"hit, first token p99 at {concurrency}", hits.first.p99, "ms")
                bench.add(system.name, f"hits/s at {concurrency}", hits.per_second, "/s")
                bench.add_cpu(system.name, f"CPU per hit at {concurrency}", used, hits.requests)
