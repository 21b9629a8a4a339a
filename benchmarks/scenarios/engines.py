"""Each managed engine relative to the `openai` engine, behind a simulated upstream that speaks its vendor's API.

Then a worker that is killed while its streams run on a Responses upstream, and one worker with 500 slow streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.bench import Bench
from benchmarks.load.plan import Plan
from benchmarks.loop_lag import loop_lags
from benchmarks.processes import free_port
from benchmarks.systems.headrace import Headrace, headrace
from benchmarks.systems.system import CHAT
from benchmarks.systems.upstream import Upstream, upstream
from benchmarks.upstream_request import text_of_tokens

BASELINE = "openai"
STEADY, FAST = "steady", "fast"
TTFT_MS, ITL_MS, TOKENS = 20, 5, 128
STREAM_S = (TTFT_MS + ITL_MS * TOKENS) / 1000
SLOTS = 64
# The streams of the killed worker, which last until its successor has started and its lease has expired.
KILLED_STREAMS, KILLED_TOKENS, KILLED_ITL_MS = 16, 600, 25
SLOW_STREAMS, SLOW_ITL_MS = 500, 400


def entries(url: str, template: Path) -> dict[str, dict[str, Any]]:
    """The entry of each engine in models.yaml, without its name.

    `url` is the upstream's, without a path; `template` a chat template for engines that render conversations.
    """
    chat = {"base_url": f"{url}/v1"}
    triton = {"base_url": url, "backend": "vllm", "chat_template": str(template)}
    return {
        BASELINE: {"engine": "openai", "model": "sim", "options": chat},
        "responses": {"engine": "openai", "api": "responses", "model": "sim", "options": chat},
        "anthropic": {"engine": "anthropic", "model": "sim", "options": chat},
        "triton": {"engine": "triton", "model": "sim", "options": triton},
        "replicate": {"engine": "replicate", "model": "sim/sim", "options": chat},
        "runpod": {"engine": "runpod", "endpoint": "sim", "model": "sim", "options": {"base_url": f"{url}/v2"}},
    }


def run(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        folder = bench.folder
        steady = stack.enter_context(upstream(folder / STEADY, ttft_ms=TTFT_MS, itl_ms=ITL_MS))
        fast = stack.enter_context(upstream(folder / FAST, ttft_ms=0, itl_ms=0))
        template = folder / "chat_template.jinja"
        template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
        engines = list(entries("", template))
        models = [
            {"name": f"{engine}-{name}", "slots": SLOTS, **entry}
            for name, one in ((STEADY, steady), (FAST, fast))
            for engine, entry in entries(_root(one), template).items()
        ]
        system = stack.enter_context(headrace(folder / "headrace", models, [str(model["name"]) for model in models]))
        for model in models:
            plan = _plan(system, str(model["name"]), 16, concurrency=16, requests=64)
            bench.measure(system.name, system.processes, plan)
        for repeat in bench.repeats():
            first = {engine: _first_token(bench, system, engine) for engine in bench.rotated(engines, repeat)}
            for engine in engines:
                bench.add(engine, "first token p50 at 16", first[engine], "ms")
                if engine != BASELINE:
                    bench.add(engine, "added to the openai engine's p50 at 16", first[engine] - first[BASELINE], "ms")
            for engine in bench.rotated(engines, repeat):
                _throughput(bench, system, engine)
    for repeat in bench.repeats():
        _killed_worker(bench, repeat)
        _slow_streams(bench, repeat)


def _first_token(bench: Bench, system: Headrace, engine: str) -> float:
    # At fixed times: in a closed loop, streams of equal length keep their phase for the whole run, and the phase alone
    # moves the median by several milliseconds.
    plan = _plan(system, f"{engine}-{STEADY}", TOKENS, concurrency=16, rate=16 / STREAM_S, requests=bench.pick(320, 48))
    summary, _ = bench.measure(engine, system.processes, plan)
    return summary.first.p50


def _throughput(bench: Bench, system: Headrace, engine: str) -> None:
    streams, tokens = 64, bench.pick(500, 100)
    plan = _plan(system, f"{engine}-{FAST}", tokens, concurrency=streams, requests=streams)
    summary, used = bench.measure(engine, system.processes, plan)
    if summary.tokens != streams * tokens:
        raise ValueError(f"{engine} relayed {summary.tokens} tokens, expected {streams * tokens}")
    bench.add(engine, f"tokens/s at {streams}", summary.tokens_per_second, "/s")
    worker = used.get(f"worker-{engine}-{FAST}", 0.0)
    bench.add(engine, f"worker CPU per token at {streams}", 1000 * worker / summary.tokens, "ms")


def _killed_worker(bench: Bench, repeat: int) -> None:
    """Kill the worker of running streams; compare what their readers have seen to what the upstream has generated."""
    folder = bench.folder / f"killed-{repeat}"
    with upstream(folder / "upstream", ttft_ms=TTFT_MS, itl_ms=KILLED_ITL_MS) as vendor:
        model = {"name": "responses", "slots": SLOTS, **entries(_root(vendor), folder)["responses"]}
        with headrace(folder / "headrace", [model], ["responses"]) as system:
            texts, longest_s = asyncio.run(_read_while_killed(system))
        expected = text_of_tokens(KILLED_TOKENS).split()
        wrong = sum(_differences(text.split(), expected) for text in texts)
        requests = httpx.get(f"{_root(vendor)}/stats").raise_for_status().json()["requests"]
        bench.add("responses", "killed worker: tokens repeated or lost", wrong, "")
        bench.add("responses", "killed worker: answers generated per job", requests / KILLED_STREAMS, "")
        bench.add("responses", "killed worker: longest pause of a stream", longest_s, "s")


async def _read_while_killed(system: Headrace) -> tuple[list[str], float]:
    """The texts of all streams, whose worker is killed meanwhile, and their longest pause in seconds."""
    running = asyncio.Event()
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{system.port}", headers=system.headers, timeout=120
    ) as client:
        readers = [
            asyncio.create_task(_read(client, f"{number}: a story", running)) for number in range(KILLED_STREAMS)
        ]
        await running.wait()
        command = [sys.executable, "-m", "workers", "responses"]
        successor = system.processes.start("successor", command, system.environment())
        await asyncio.to_thread(system.processes.wait, successor, lambda: " ready." in successor.last_lines(10**6))
        os.kill(system.processes.pids["worker-responses"], signal.SIGKILL)
        results = await asyncio.gather(*readers)
    return [text for text, _ in results], max(pause_s for _, pause_s in results)


async def _read(client: httpx.AsyncClient, prompt: str, running: asyncio.Event) -> tuple[str, float]:
    body = {
        "model": "responses",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": KILLED_TOKENS,
        "stream": True,
    }
    text, longest_s, last = "", 0.0, time.monotonic()
    async with client.stream("POST", CHAT, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ValueError(f"a stream failed: {event['error']}")
            piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            if piece:
                longest_s, last = max(longest_s, time.monotonic() - last), time.monotonic()
                text += piece
                running.set()
    return text, longest_s


def _differences(found: list[str], expected: list[str]) -> int:
    """The number of tokens that are missing, repeated or not expected."""
    matcher = difflib.SequenceMatcher(None, found, expected, autojunk=False)
    return sum(
        max(found_end - found_start, end - start)
        for tag, found_start, found_end, start, end in matcher.get_opcodes()
        if tag != "equal"
    )


def _slow_streams(bench: Bench, repeat: int) -> None:
    """Many slow streams through one worker: its memory, and the lag of its event loop."""
    folder = bench.folder / f"slow-{repeat}"
    port = free_port()
    with upstream(folder / "upstream", ttft_ms=TTFT_MS, itl_ms=SLOW_ITL_MS) as vendor:
        model = {"name": BASELINE, "slots": SLOW_STREAMS, **entries(_root(vendor), folder)[BASELINE]}
        with headrace(folder / "headrace", [model], [BASELINE], HEADRACE_METRICS_PORT=port) as system:
            url = f"http://127.0.0.1:{port}/metrics"
            before = loop_lags(url, system.headers)
            tokens = bench.pick(60, 15)
            plan = _plan(system, BASELINE, tokens, concurrency=SLOW_STREAMS, requests=SLOW_STREAMS, spread_s=5.0)
            summary, used = bench.measure(BASELINE, system.processes, plan)
            after = loop_lags(url, system.headers)
            resident = psutil.Process(system.processes.pids[f"worker-{BASELINE}"]).memory_info().rss
    name = f"{SLOW_STREAMS} slow streams"
    bench.add(BASELINE, f"{name}: memory of the worker", resident / 2**20, "MiB")
    bench.add(BASELINE, f"{name}: loop lag p99", 1000 * _quantile(before, after, 0.99), "ms")
    bench.add(BASELINE, f"{name}: first token p99", summary.first.p99, "ms")
    bench.add_cpu(BASELINE, f"{name}: CPU per token", used, summary.tokens)


def _quantile(before: Mapping[float, float], after: Mapping[float, float], quantile: float) -> float:
    """The upper bound, in seconds, of the bucket that has the quantile of what was counted in between."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = max(counts.values())
    return next(bound for bound, count in counts.items() if count >= quantile * total)


def _root(vendor: Upstream) -> str:
    return f"http://127.0.0.1:{vendor.port}"


def _plan(system: Headrace, model: str, tokens: int, **plan: Any) -> Plan:
    """A plan of chats without vLLM's extensions."""
    return system.chat(model, tokens, ignore_eos=False, **plan)
