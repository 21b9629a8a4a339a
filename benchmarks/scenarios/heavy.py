"""The largest requests beside a stream on the same worker: the gaps of both event loops, and of the stream's tokens.

The requests are a prompt of 4 MB, and 16 choices with as many log probabilities as a request may ask for. The loop lag
of a process is the delay of its timers, from its metrics.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import httpx

from benchmarks.bench import Bench
from benchmarks.loop_lag import loop_lags
from benchmarks.processes import free_port
from benchmarks.scenarios.submits import JOBS
from benchmarks.systems.headrace import Headrace, headrace

MODEL = "heavy"
LIMIT_S = 0.05
# A tool whose parameters are one object of 3.6 MB.
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": [{"key": "v" * 10}] * 180_000}}}]
HEAVY: tuple[dict[str, Any], ...] = (
    {"prompt": "the mill", "n": 16, "max_tokens": 750, "logprobs": 20},
    {"prompt": "the river mill, " * 250_000, "max_tokens": 16},
    {"prompt": "the mill", "n": 1, "max_tokens": 12_000, "logprobs": 20},
    {"messages": [{"role": "user", "content": "the mill"}], "tools": TOOLS, "max_tokens": 16},
)


def run(bench: Bench) -> None:
    tokens = bench.pick(3000, 750)
    options = {"ttft_ms": 20, "itl_ms": 10, "max_model_len": 2_000_000}
    model = {"name": MODEL, "engine": "simulated", "slots": 64, "options": options}
    port = free_port()
    with headrace(bench.folder, [model], [MODEL], HEADRACE_METRICS_PORT=port) as system:
        urls = {"api": f"http://127.0.0.1:{system.port}/metrics", "worker": f"http://127.0.0.1:{port}/metrics"}
        bench.measure(system.name, system.processes, system.chat(MODEL, 20, concurrency=4, requests=4))
        for _ in bench.repeats():
            plan = system.chat(MODEL, tokens, concurrency=1, requests=1)
            alone, _used = bench.measure(system.name, system.processes, plan)
            with _heavy(system) as ended:
                before = {name: _lag(system, url) for name, url in urls.items()}
                beside, _used = bench.measure(system.name, system.processes, plan)
                after = {name: _lag(system, url) for name, url in urls.items()}
            bench.add(system.name, "heavy requests", len(ended), "")
            bench.add(system.name, "step p99 alone", alone.gap.p99, "ms")
            bench.add(system.name, "step p99 beside", beside.gap.p99, "ms")
            bench.add(system.name, "largest step beside", beside.gap.worst, "ms")
            for name in urls:
                (timers, late), (timers_before, late_before) = after[name], before[name]
                share = 100 * (late - late_before) / max(1.0, timers - timers_before)
                bench.add(system.name, f"{name}: timers later than 50 ms", share, "%")


@contextlib.contextmanager
def _heavy(system: Headrace) -> Iterator[list[str]]:
    """Send heavy requests one after the other until the context is left. Yields the ids of those that have ended."""
    ended: list[str] = []
    stop = threading.Event()

    def send() -> None:
        with _client(system) as client:
            bodies = 0
            while not stop.is_set():
                body = {"model": MODEL, **HEAVY[bodies % len(HEAVY)]}
                bodies += 1
                job_id = client.post(JOBS, json=body).raise_for_status().json()["id"]
                while client.get(f"{JOBS}/{job_id}").status_code == 202 and not stop.wait(0.1):
                    pass
                ended.append(job_id)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        thread.join()


def _client(system: Headrace) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{system.port}", headers=system.headers, timeout=60)


def _lag(system: Headrace, url: str) -> tuple[float, float]:
    """The number of timers that a process has run, and of those that were later than `LIMIT_S`."""
    lags = loop_lags(url, system.headers)
    return lags[math.inf], lags[math.inf] - lags[LIMIT_S]
