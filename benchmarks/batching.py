"""Continuous batching, seen from outside: tokens per second of one job at a time against many at once.

    make up                                  # in one terminal
    python -m benchmarks.batching            # in another

Both ways run interleaved, and medians are printed with minimum and maximum.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from pathlib import Path

import httpx

PROMPT = "Write a long and detailed story about water mill number {number}."


async def generate(client: httpx.AsyncClient, model: str, number: int, tokens: int) -> int:
    """Run one job to its end. Returns its output tokens."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT.format(number=number)}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    made: int = response.json()["usage"]["completion_tokens"]
    return made


async def tokens_per_second(client: httpx.AsyncClient, model: str, jobs: int, at_once: int, tokens: int) -> float:
    """Output tokens per second over all jobs, `at_once` of them running."""
    room = asyncio.Semaphore(at_once)

    async def one(number: int) -> int:
        async with room:
            return await generate(client, model, number, tokens)

    began = time.perf_counter()
    made = await asyncio.gather(*(one(number) for number in range(jobs)))
    return sum(made) / (time.perf_counter() - began)


async def run(arguments: argparse.Namespace) -> None:
    headers = {"Authorization": f"Bearer {arguments.key}"}
    async with httpx.AsyncClient(base_url=arguments.url, headers=headers, timeout=600) as client:
        await generate(client, arguments.model, 0, 4)  # the first one warms up
        alone: list[float] = []
        together: list[float] = []
        for _ in range(arguments.repeats):
            alone.append(await tokens_per_second(client, arguments.model, 2, 1, arguments.tokens))
            together.append(
                await tokens_per_second(client, arguments.model, arguments.at_once, arguments.at_once, arguments.tokens)
            )
    print(f"{arguments.model}, {arguments.tokens} tokens a job, {os.cpu_count()} cores, {platform.machine()}")
    show("one at a time", alone)
    show(f"{arguments.at_once} at once", together)
    print(f"ratio of medians: {statistics.median(together) / statistics.median(alone):.1f}")


def show(name: str, figures: list[float]) -> None:
    print(
        f"{name:>16}: {statistics.median(figures):7.1f} tokens/s"
        f"  (min {min(figures):.1f}, max {max(figures):.1f}, {len(figures)} runs)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('HEADRACE_PORT', '8000')}")
    parser.add_argument("--key", default=default_key(), help="default: HEADRACE_API_KEY, or what `make up` keeps")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    asyncio.run(run(parser.parse_args()))


def default_key() -> str:
    kept = Path(os.environ.get("HEADRACE_HOME", ".headrace")) / "api_key"
    return os.environ.get("HEADRACE_API_KEY") or (kept.read_text().strip() if kept.is_file() else "")


if __name__ == "__main__":
    main()
