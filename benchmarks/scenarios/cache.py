"""The response cache: the first token of a cached answer, next to the API's own overhead, a submit with its commit.

Before that, cached answers are compared with the generated one, and identical requests are sent at the same time.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx

from benchmarks.bench import Bench
from benchmarks.load.plan import Plan
from benchmarks.scenarios.submits import JOBS, ORPHAN, submit
from benchmarks.systems.headrace import Headrace, headrace
from benchmarks.systems.system import CHAT

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
REPLAYS = 20
IDENTICAL = 100
# What belongs to each job itself.
_IDS_AND_TIMES = re.compile(r'"(?:id|created)":\s*(?:"[^"]*"|[0-9.]+)')


def repeat(system: Headrace, **plan: Any) -> Plan:
    """Return a plan that sends the same request again and again."""
    return Plan(port=system.port, path=CHAT, body=BODY, headers=system.headers, **plan)


def _compare(bench: Bench, system: Headrace, question: str) -> None:
    """Compare the streams of cached answers with that of the answer itself."""
    original, *replays = [stream for _ in range(REPLAYS + 1) for stream in asyncio.run(_streams(system, question, 1))]
    if asyncio.run(_generated(system, REPLAYS + 1)) != 1:
        raise ValueError("answers were generated that should have come from the cache")
    bench.add(system.name, "replays that differ from the answer", sum(replay != original for replay in replays), "")


def _coalesce(bench: Bench, system: Headrace, question: str) -> None:
    """Send identical requests at the same time."""
    streams = asyncio.run(_streams(system, question, IDENTICAL))
    what = f"{IDENTICAL} identical requests"
    bench.add(system.name, f"{what}: engine runs", asyncio.run(_generated(system, IDENTICAL)), "")
    bench.add(system.name, f"{what}: equal answers", streams.count(streams[0]), "")


async def _streams(system: Headrace, question: str, count: int) -> list[str]:
    """Send identical requests at the same time. Returns their streams without ids and times."""
    body = {**BODY, "messages": [{"role": "user", "content": question}]}
    async with _client(system) as client:
        responses = await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(count)))
    return [_IDS_AND_TIMES.sub("", response.raise_for_status().text) for response in responses]


async def _generated(system: Headrace, count: int) -> int:
    """How many of the newest jobs, at most 100, a worker has executed."""
    async with _client(system) as client:
        listed = (await client.get(JOBS, params={"limit": count})).raise_for_status().json()["data"]
    return sum(bool(job["attempts"]) for job in listed)


def _client(system: Headrace) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=IDENTICAL)
    url = f"http://127.0.0.1:{system.port}"
    return httpx.AsyncClient(base_url=url, headers=system.headers, timeout=60, trust_env=False, limits=limits)


def run(bench: Bench) -> None:
    seconds = bench.pick(5.0, 1.0)
    with headrace(bench.folder, [SIMULATED, ORPHAN], [MODEL]) as system:
        bench.measure(system.name, system.processes, repeat(system, concurrency=1, requests=2))
        for number in bench.repeats():
            _compare(bench, system, f"Name a river, for the {number}th time.")
            _coalesce(bench, system, f"Name two rivers, for the {number}th time.")
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
