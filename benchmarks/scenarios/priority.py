"""Interactive first-token latency with and without a batch of 5,000 requests that fills the engine.

A step is the distance between two tokens of an interactive stream. `added beyond a step` is what the batch adds to the
first token's p95 beyond the p95 of the steps beside it: an engine cannot take a request in mid-step, and one in which
batch jobs are prefilled takes longer than the others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import orjson

from benchmarks.bench import Bench
from benchmarks.load.plan import Summary
from benchmarks.systems.headrace import Headrace, headrace
from benchmarks.systems.system import CHAT
from benchmarks.systems.vllm_model import NAME, vllm_model

SLOTS = 32
TOKENS = 8
# Batch jobs differ in length, so that they do not start in waves. Measuring starts once SETTLED jobs have ended.
LENGTHS = range(32, 97)
SETTLED = 100
POLL_S = 0.1


def run(bench: Bench) -> None:
    options = {"ttft_ms": 20, "itl_ms": 20}
    simulated = {"name": NAME, "engine": "simulated", "slots": SLOTS, "options": options}
    _engine(bench, "simulated", simulated, rate=5.0, requests=bench.pick(100, 20))
    model = vllm_model(bench.options)
    _engine(bench, "vllm", model.entry, rate=bench.pick(0.4, 0.5), requests=bench.pick(40, 6))


def _engine(bench: Bench, name: str, model: Mapping[str, Any], *, rate: float, requests: int) -> None:
    with headrace(bench.folder / name, [model], [NAME], name=name) as system:
        bench.measure(name, system.processes, system.chat(NAME, TOKENS, concurrency=4, requests=4))
        for _ in bench.repeats():
            plan = system.chat(NAME, TOKENS, rate=rate, requests=requests)
            alone, _used = bench.measure(name, system.processes, plan)
            with _batch(system, bench.pick(5000, 1000)) as completed:
                before = completed()
                plan = system.chat(NAME, TOKENS, rate=rate, requests=requests)
                behind, _used = bench.measure(name, system.processes, plan)
                ended = completed() - before
            _add(bench, name, "alone", alone)
            _add(bench, name, "with a batch", behind)
            added = behind.first.p95 - alone.first.p95 - behind.gap.p95
            bench.add(name, "p95 added beyond a step", added, "ms")
            bench.add(name, "batch requests/s", ended / behind.seconds, "/s")


def _add(bench: Bench, name: str, when: str, summary: Summary) -> None:
    bench.add(name, f"first token p50 {when}", summary.first.p50, "ms")
    bench.add(name, f"first token p95 {when}", summary.first.p95, "ms")
    bench.add(name, f"step p50 {when}", summary.gap.p50, "ms")
    bench.add(name, f"step p95 {when}", summary.gap.p95, "ms")


@contextlib.contextmanager
def _batch(system: Headrace, lines: int) -> Iterator[Any]:
    """Run a batch that fills the engine, and cancel it on exit. Yields a function that counts completed requests."""
    with httpx.Client(base_url=f"http://127.0.0.1:{system.port}", headers=system.headers, timeout=60) as client:
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", _lines(lines))})
        body = {"input_file_id": file.raise_for_status().json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        created = client.post("/v1/batches", json=body).raise_for_status().json()

        def batch() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/v1/batches/{created['id']}").raise_for_status().json()
            return found

        def completed() -> int:
            return int(batch()["request_counts"]["completed"])

        while completed() < SETTLED:
            if batch()["status"] not in ("validating", "in_progress"):
                raise ValueError(f"the batch did not run: {batch()}")
            time.sleep(POLL_S)
        yield completed
        if batch()["status"] != "in_progress":
            raise ValueError("the batch ended during the measurement; it was too short")
        client.post(f"/v1/batches/{created['id']}/cancel").raise_for_status()
        while batch()["status"] == "cancelling":
            time.sleep(POLL_S)


def _lines(count: int) -> bytes:
    body = {"model": NAME, "ignore_eos": True}
    lines = (
        {
            "custom_id": str(number),
            "method": "POST",
            "url": CHAT,
            "body": {
                **body,
                "messages": [{"role": "user", "content": f"{number}: tell of a mill."}],
                "max_tokens": LENGTHS[number * 7 % len(LENGTHS)],
            },
        }
        for number in range(count)
    )
    return b"\n".join(map(orjson.dumps, lines))
