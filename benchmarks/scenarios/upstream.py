"""Gateway overhead: a simulated upstream alone, behind Headrace, and behind LiteLLM's proxy.

Headrace commits each request before forwarding it; LiteLLM stores nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.bench import Bench
from benchmarks.load.plan import Plan, Summary
from benchmarks.systems.headrace import Headrace, headrace
from benchmarks.systems.litellm import litellm
from benchmarks.systems.system import System
from benchmarks.systems.upstream import Upstream, upstream

# Model names: an upstream at the speed of an engine, and one as fast as possible.
STEADY, FAST = "steady", "fast"
SLOTS = 256
TTFT_MS, ITL_MS, TOKENS = 20, 5, 128
STREAM_S = (TTFT_MS + ITL_MS * TOKENS) / 1000


def steady_upstream(bench: Bench) -> AbstractContextManager[Upstream]:
    """The upstream at the speed of an engine."""
    return upstream(bench.folder / STEADY, ttft_ms=TTFT_MS, itl_ms=ITL_MS)


def relaying(
    bench: Bench, *upstreams: Upstream, name: str = "headrace", delay_ms: float = 0.0
) -> AbstractContextManager[Headrace]:
    """Headrace with one worker for each upstream; the first one's model is `STEADY`, the second one's `FAST`."""
    models = [
        {"name": model, "engine": "openai", "model": "sim", "slots": SLOTS, "options": {"base_url": system.url}}
        for model, system in zip((STEADY, FAST), upstreams, strict=False)
    ]
    workers = [str(model["name"]) for model in models]
    return headrace(bench.folder / name, models, workers, name=name, delay_ms=delay_ms)


def run(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        steady = stack.enter_context(steady_upstream(bench))
        fast = stack.enter_context(upstream(bench.folder / FAST, ttft_ms=0, itl_ms=0))
        upstreams = {STEADY: steady.url, FAST: fast.url}
        ours = stack.enter_context(relaying(bench, steady, fast))
        theirs = stack.enter_context(litellm(bench.folder / "litellm", upstreams))
        for system in (ours, theirs):
            for model in upstreams:
                plan = gateway_plan(system, model, 16, concurrency=16, requests=64)
                bench.measure(system.name, system.processes, plan)
        for repeat in bench.repeats():
            for streams in (1, 16):
                first_tokens(bench, repeat, [steady, ours, theirs], streams)
            for system in bench.rotated([fast, ours, theirs], repeat):
                _throughput(bench, system)


def first_tokens(bench: Bench, repeat: int, systems: Sequence[System], streams: int) -> dict[str, float]:
    """Measure first tokens of the upstream, which is the first system, and of the others in turns.

    Returns the milliseconds that each of the others adds to its p50.
    """
    requests = bench.pick(320, 48) if streams > 1 else bench.pick(60, 12)
    seen: dict[str, Summary] = {}
    for system in bench.rotated(systems, repeat):
        plan = gateway_plan(
            system, STEADY, TOKENS, concurrency=streams, requests=requests, spread_s=STREAM_S if streams > 1 else 0.0
        )
        seen[system.name], used = bench.measure(system.name, system.processes, plan)
        first = seen[system.name].first
        bench.add(system.name, f"first token p50 at {streams}", first.p50, "ms")
        bench.add(system.name, f"first token p99 at {streams}", first.p99, "ms")
        if streams > 1:
            bench.add_cpu(system.name, f"CPU per request of {TOKENS} tokens", used, requests)
    alone = seen[systems[0].name].first
    added: dict[str, float] = {}
    for system in systems[1:]:
        first = seen[system.name].first
        added[system.name] = first.p50 - alone.p50
        bench.add(system.name, f"added to p50 at {streams}", added[system.name], "ms")
        bench.add(system.name, f"added to p99 at {streams}", first.p99 - alone.p99, "ms")
    return added


def _throughput(bench: Bench, system: System) -> None:
    streams, tokens = 64, bench.pick(500, 100)
    plan = gateway_plan(system, FAST, tokens, concurrency=streams, requests=streams)
    summary, used = bench.measure(system.name, system.processes, plan)
    if summary.tokens != streams * tokens:
        raise ValueError(f"{system.name} relayed {summary.tokens} tokens, expected {streams * tokens}")
    bench.add(system.name, f"tokens/s at {streams}", summary.tokens_per_second, "/s")
    bench.add_cpu(system.name, f"CPU per token at {streams}", used, summary.tokens)


def gateway_plan(system: System, model: str, tokens: int, **plan: Any) -> Plan:
    """Return a chat plan without vLLM's extensions, which the upstream does not support."""
    return system.chat("sim" if isinstance(system, Upstream) else model, tokens, ignore_eos=False, **plan)
