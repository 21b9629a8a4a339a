"""What budgets and rate limits add to a submit and to a first token.

Two projects of one installation are measured in turns: `unmetered` has neither; `metered` has budgets of the project
and of each of its end users, and rate limits of the project, of a model and of each end user. Both have a ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks.bench import Bench
from benchmarks.load.plan import NUMBER, Plan
from benchmarks.scenarios.submits import JOBS
from benchmarks.systems.headrace import Headrace, headrace

UNMETERED, METERED = "unmetered", "metered"
MODEL = "timed"
PRICE = {"input": 1.0, "output": 4.0}
MODELS: list[dict[str, Any]] = [
    {"name": "orphan", "engine": "simulated", "price": PRICE},
    {
        "name": MODEL,
        "engine": "simulated",
        "slots": 64,
        "price": PRICE,
        "options": {"ttft_ms": 20, "itl_ms": 5},
    },
]
TOKENS = 64
ENOUGH = 1_000_000_000
LIMITS: list[dict[str, Any]] = [
    {"requests_per_minute": ENOUGH, "tokens_per_minute": ENOUGH, "concurrent_jobs": ENOUGH},
    {"model": MODEL, "requests_per_minute": ENOUGH, "tokens_per_minute": ENOUGH},
    {"end_user": "*", "requests_per_minute": ENOUGH, "tokens_per_minute": ENOUGH},
]
BUDGETS: list[dict[str, Any]] = [{"period": "month"}, {"period": "day", "end_user": "*"}]
CONCURRENCIES = (1, 16)
FIGURES = tuple(f"{what} p50 at {count}" for count in CONCURRENCIES for what in ("submit", "first token"))


def run(bench: Bench) -> None:
    with headrace(bench.folder, MODELS, [MODEL]) as system:
        keys = {UNMETERED: dict(system.headers), METERED: _metered(system)}
        for headers in keys.values():
            bench.measure(system.name, system.processes, _submits(system, headers, 16, seconds=1.0))
            bench.measure(system.name, system.processes, _streams(system, headers, 16, requests=32))
        for repeat in bench.repeats():
            p50 = {
                (name, figure): value
                for name in bench.rotated([UNMETERED, METERED], repeat)
                for figure, value in _once(bench, system, name, keys[name]).items()
            }
            for figure in FIGURES:
                bench.add(METERED, f"added to {figure}", p50[METERED, figure] - p50[UNMETERED, figure], "ms")


def _once(bench: Bench, system: Headrace, name: str, headers: Mapping[str, str]) -> dict[str, float]:
    """Measure one project. Returns the figures of `FIGURES`, in milliseconds."""
    found: dict[str, float] = {}
    for concurrency in CONCURRENCIES:
        system.sql("TRUNCATE jobs, responses, usage_events, budget_reservations", "CHECKPOINT")
        plan = _submits(system, headers, concurrency, seconds=bench.pick(5.0, 1.0), warm_up=concurrency)
        summary, used = bench.measure(name, system.processes, plan)
        bench.add_cpu(name, f"CPU per submit at {concurrency}", used, summary.requests)
        latencies = {"submit": summary.latency}
        plan = _streams(system, headers, concurrency, requests=bench.pick(20, 4) * max(concurrency, 3))
        latencies["first token"] = bench.measure(name, system.processes, plan)[0].first
        for what, spread in latencies.items():
            found[f"{what} p50 at {concurrency}"] = spread.p50
            bench.add(name, f"{what} p50 at {concurrency}", spread.p50, "ms")
            bench.add(name, f"{what} p99 at {concurrency}", spread.p99, "ms")
    return found


def _submits(system: Headrace, headers: Mapping[str, str], concurrency: int, **plan: Any) -> Plan:
    body = {**_body("orphan"), "messages": [{"role": "user", "content": f"{NUMBER}: name three rivers."}]}
    return Plan(port=system.port, path=JOBS, body=body, headers=dict(headers), concurrency=concurrency, **plan)


def _streams(system: Headrace, headers: Mapping[str, str], concurrency: int, **plan: Any) -> Plan:
    body = {
        **_body(MODEL),
        "messages": [{"role": "user", "content": f"{NUMBER}: name three rivers."}],
        "ignore_eos": True,
        "stream": True,
    }
    return Plan(
        port=system.port,
        path="/v1/chat/completions",
        body=body,
        headers=dict(headers),
        concurrency=concurrency,
        # Streams of equal length that start together would stay synchronised.
        spread_s=TOKENS * 0.005 if concurrency > 1 else 0.0,
        **plan,
    )


def _body(model: str) -> dict[str, Any]:
    return {"model": model, "max_tokens": TOKENS, "user": f"user {NUMBER}"}


def _metered(system: Headrace) -> dict[str, str]:
    """Create a project with budgets and limits. Returns the headers of its key."""
    with httpx.Client(base_url=f"http://127.0.0.1:{system.port}/v1/admin", headers=dict(system.headers)) as admin:

        def create(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            response = admin.post(path, json=body)
            response.raise_for_status()
            created: dict[str, Any] = response.json()
            return created

        key = create("/keys", {"name": METERED, "project": METERED})
        for limit in LIMITS:
            create("/limits", {**limit, "project": METERED})
        for budget in BUDGETS:
            create("/budgets", {**budget, "project": METERED, "limit_usd": 1_000_000})
    return {"Authorization": f"Bearer {key['secret']}"}
