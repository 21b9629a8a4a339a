"""The first token of the first request after a worker's start, with and without `warm_prompts`.

The requests have a long system message in common. Each run starts a worker of its own.
"""

from __future__ import annotations

from dataclasses import replace

import httpx

from benchmarks.bench import Bench
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
                _count(system)
                bench.add(name, FIRST, _first_token_ms(bench, system), "ms")
                for _ in range(bench.pick(8, 3)):
                    bench.add(name, LATER, _first_token_ms(bench, system), "ms")


def _count(system: System) -> None:
    """Have the API count a prompt, without the engine: its own first request loads the tokenizer."""
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}
    url = f"http://127.0.0.1:{system.port}/v1/messages/count_tokens"
    httpx.post(url, json=body, headers=system.headers, timeout=60, trust_env=False).raise_for_status()


def _first_token_ms(bench: Bench, system: System) -> float:
    """The first token of one request, on a connection of its own."""
    plan = system.chat(NAME, 8, requests=1)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
    plan = replace(plan, body={**(plan.body or {}), "messages": messages})
    return bench.measure(system.name, system.processes, plan)[0].first.p50
