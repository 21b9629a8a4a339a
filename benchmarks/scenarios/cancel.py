"""Cancels in mid-stream, timed from the request to `job.cancelled`.

The event is sent after the engine has freed the slot, so the figures are upper bounds for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.bench import Bench
from benchmarks.load.plan import NUMBER, Plan
from benchmarks.scenarios.submits import JOBS
from benchmarks.systems.headrace import headrace
from benchmarks.systems.vllm_model import NAME, vllm_model

CANCELS_PER_SECOND = 20.0


def run(bench: Bench) -> None:
    options = {"ttft_ms": 20, "itl_ms": 20}
    _engine(bench, "simulated", {"name": NAME, "engine": "simulated", "slots": 64, "options": options})
    _engine(bench, "vllm", vllm_model(bench.options).entry)


def _engine(bench: Bench, name: str, model: Mapping[str, Any]) -> None:
    jobs = bench.pick(300, 40)
    with headrace(bench.folder / name, [model], [NAME], name=name) as system:
        bench.measure(name, system.processes, system.chat(NAME, 8, concurrency=4, requests=4))
        for _ in bench.repeats():
            plan = Plan(
                port=system.port,
                path=JOBS,
                kind="cancel",
                headers=system.headers,
                body={"model": NAME, "prompt": f"{NUMBER}: count on", "max_tokens": 1000, "ignore_eos": True},
                rate=CANCELS_PER_SECOND,
                requests=jobs,
            )
            summary, used = bench.measure(name, system.processes, plan)
            bench.add(name, "cancelled", summary.requests, f"of {jobs}")
            bench.add(name, "cancel p50", summary.latency.p50, "ms")
            bench.add(name, "cancel p99", summary.latency.p99, "ms")
            bench.add_cpu(name, "CPU per job", used, jobs)
