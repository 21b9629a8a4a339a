"""Relay throughput at saturation: many streams of a cheap engine through one worker, Redis and one API process."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.systems.headrace import headrace

STREAMS = 256
MODEL = "fast"


def run(bench: Bench) -> None:
    tokens = bench.pick(1000, 200)
    options = {"ttft_ms": 0, "itl_ms": 1}  # offers 256,000 tokens/s
    model = {"name": MODEL, "engine": "simulated", "slots": STREAMS, "options": options}
    with headrace(bench.folder, [model], [MODEL]) as system:
        bench.measure(system.name, system.processes, system.chat(MODEL, 20, concurrency=64, requests=64))
        for _ in bench.repeats():
            system.delete_jobs()
            plan = system.chat(MODEL, tokens, concurrency=STREAMS, requests=STREAMS)
            summary, used = bench.measure(system.name, system.processes, plan, may_fail=True)
            bench.add(system.name, f"rejected of {STREAMS}", summary.failed, "")
            bench.add(system.name, f"tokens/s at {STREAMS}", summary.tokens_per_second, "/s")
            bench.add(system.name, f"first token p50 at {STREAMS}", summary.first.p50, "ms")
            bench.add(system.name, f"first token p99 at {STREAMS}", summary.first.p99, "ms")
            bench.add(system.name, f"largest gap at {STREAMS}", summary.gap.worst, "ms")
            bench.add_cpu(system.name, f"CPU per token at {STREAMS}", used, summary.tokens)
