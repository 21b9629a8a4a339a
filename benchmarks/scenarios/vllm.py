"""The same model and engine options in Headrace, vLLM's own server, vLLM without a server, and a naive Celery task.

All engines stay loaded and one at a time gets load. CPU time used by an idle one would count as a disturbance.
"""

from __future__ import annotations

import contextlib

from benchmarks.bench import Bench
from benchmarks.load.plan import Summary
from benchmarks.systems.headrace import headrace
from benchmarks.systems.naive import naive
from benchmarks.systems.raw_engine import raw_engine
from benchmarks.systems.system import System
from benchmarks.systems.vllm_model import NAME, vllm_model
from benchmarks.systems.vllm_server import vllm_server

# The naive task runs one job at a time at any concurrency, so one concurrency is enough.
NAIVE_STREAMS = 16


def run(bench: Bench) -> None:
    model = vllm_model(bench.options)
    streams = (1, 16, 64, 256) if bench.options.device == "cuda" else (1, 16, 64)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(headrace(bench.folder / "headrace", [model.entry], [NAME]))
        bench.say("headrace is ready")
        theirs = stack.enter_context(vllm_server(bench.folder / "vllm", model))
        bench.say("vllm is ready")
        raw = stack.enter_context(raw_engine(bench.folder / "raw", model))
        bench.say("raw-engine is ready")
        simple = stack.enter_context(naive(bench.folder / "naive", model))
        bench.say("celery-naive is ready")
        for system in (ours, theirs, raw, simple):
            bench.measure(system.name, system.processes, system.chat(NAME, 8, concurrency=4, requests=4))
        for repeat in bench.repeats():
            for count in streams:
                systems = [ours, theirs, raw, *([simple] if count == NAIVE_STREAMS else [])]
                rounds = bench.pick(8, 3) if count == 1 else bench.pick(2, 1)
                summaries = {
                    # The naive task takes too long for more than one round.
                    system.name: _once(bench, system, count, rounds=1 if system is simple else rounds)
                    for system in bench.rotated(systems, repeat)
                }
                added = summaries["headrace"].first.p50 - summaries["vllm"].first.p50
                bench.add("headrace", f"added to the first token at {count}", added, "ms")


def _once(bench: Bench, system: System, streams: int, *, rounds: int) -> Summary:
    tokens = bench.pick(64, 32)
    requests = rounds * streams
    plan = system.chat(NAME, tokens, concurrency=streams, requests=requests)
    summary, used = bench.measure(system.name, system.processes, plan)
    if summary.tokens != requests * tokens:
        raise ValueError(f"{system.name} generated {summary.tokens} tokens, expected {requests * tokens}")
    bench.add(system.name, f"tokens/s at {streams}", summary.tokens_per_second, "/s")
    if system.streams:
        bench.add(system.name, f"first token p50 at {streams}", summary.first.p50, "ms")
        bench.add(system.name, f"first token p95 at {streams}", summary.first.p95, "ms")
    bench.add_cpu(system.name, f"CPU per token at {streams}", used, summary.tokens)
    return summary
