"""Gateway overhead: a simulated upstream alone, behind Headrace, and behind LiteLLM's proxy.

Headrace commits each request before forwarding it; LiteLLM stores nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.bench import Bench
from benchmarks.load.plan import Plan, Summary
from benchmarks.systems.headrace import headrace
from benchmarks.systems.litellm import litellm
from benchmarks.systems.system import System
from benchmarks.systems.upstream import Upstream, upstream

# Model names: an upstream at the speed of an engine, and one as fast as possible.
STEADY, FAST = "steady", "fast"
SLOTS = 256
TTFT_MS, ITL_MS, TOKENS = 20, 5, 128
STREAM_S = (TTFT_MS + ITL_MS * TOKENS) / 1000


def run(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        steady = stack.enter_context(upstream(bench.folder / STEADY, ttft_ms=TTFT_MS, itl_ms=ITL_MS))
        fast = stack.enter_context(upstream(bench.folder / FAST, ttft_ms=0, itl_ms=0))
        upstreams = {STEADY: steady.url, FAST: fast.url}
        models = [
            {"name": name, "engine": "openai", "model": "sim", "slots": SLOTS, "options": {"base_url": url}}
            for name, url in upstreams.items()
        ]
        ours = stack.enter_context(headrace(bench.folder / "headrace", models, [STEADY, FAST]))
        theirs = stack.enter_context(litellm(bench.folder / "litellm", upstreams))
        for system in (ours, theirs):
            for model in upstreams:
                bench.measure(system.name, system.processes, _plan(system, model, 16, concurrency=16, requests=64))
        for repeat in bench.repeats():
            for streams in (1, 16):
                _first_tokens(bench, repeat, [steady, ours, theirs], streams)
            for system in bench.rotated([fast, ours, theirs], repeat):
                _throughput(bench, system)


def _first_tokens(bench: Bench, repeat: int, systems: list[System], streams: int) -> None:
    requests = bench.pick(320, 48) if streams > 1 else bench.pick(60, 12)
    seen: dict[str, Summary] = {}
    for system in bench.rotated(systems, repeat):
        plan = _plan(
            system, STEADY, TOKENS, concurrency=streams, requests=requests, spread_s=STREAM_S if streams > 1 else 0.0
        )
        seen[system.name], used = bench.measure(system.name, system.processes, plan)
        first = seen[system.name].first
        bench.add(system.name, f"first token p50 at {streams}", first.p50, "ms")
        bench.add(system.name, f"first token p99 at {streams}", first.p99, "ms")
        if streams > 1:
            bench.add_cpu(system.name, f"CPU per request of {TOKENS} tokens", used, requests)
    alone = seen["upstream"].first
    for name in ("headrace", "litellm"):
        bench.add(name, f"added to p50 at {streams}", seen[name].first.p50 - alone.p50, "ms")
        bench.add(name, f"added to p99 at {streams}", seen[name].first.p99 - alone.p99, "ms")


def _throughput(bench: Bench, system: System) -> None:
    streams, tokens = 64, bench.pick(500, 100)
    plan = _plan(system, FAST, tokens, concurrency=streams, requests=streams)
    summary, used = bench.measure(system.name, system.processes, plan)
    if summary.tokens != streams * tokens:
        raise ValueError(f"{system.name} relayed {summary.tokens} tokens, expected {streams * tokens}")
    bench.add(system.name, f"tokens/s at {streams}", summary.tokens_per_second, "/s")
    bench.add_cpu(system.name, f"CPU per token at {streams}", used, summary.tokens)


def _plan(system: System, model: str, tokens: int, **plan: Any) -> Plan:
    """Return a chat plan without vLLM's extensions, which the upstream does not support."""
    return system.chat("sim" if isinstance(system, Upstream) else model, tokens, ignore_eos=False, **plan)
