"""The first token of the first request after a worker's start, with and without `warm_prompts`.

The requests have a long system message in common. Each run starts a worker of its own.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.load.plan import Summary
from benchmarks.systems.headrace import headrace
from benchmarks.systems.system import PROMPT, System
from benchmarks.systems.vllm_model import NAME, vllm_model

FIRST = "first token of the first request"
LATER = "first token of later requests"
# About 1,700 tokens, in a context of 2,048.
SYSTEM = " ".join(f"Rule {number}: never answer in more than {number} words." for number in range(110))


def run(bench: Bench) -> None:
    cold = vllm_model(bench.options).entry
    entries = {"cold": cold, "warm": {**cold, "warm_prompts": [{"text": SYSTEM}]}}
    for repeat in bench.repeats():
        for name in bench.rotated([*entries], repeat):
            with headrace(bench.folder / f"{name}-{repeat}", [entries[name]], [NAME], name=name) as system:
                bench.add(name, FIRST, _ask(bench, system, 1).first.p50, "ms")
                bench.add(name, LATER, _ask(bench, system, bench.pick(16, 4)).first.p50, "ms")


def _ask(bench: Bench, system: System, requests: int) -> Summary:
    plan = system.chat(NAME, 8, requests=requests)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
    plan = replace(plan, body={**(plan.body or {}), "messages": messages})
    return bench.measure(system.name, system.processes, plan)[0]
