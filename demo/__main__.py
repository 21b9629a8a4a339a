"""`python -m demo`: shows on this machine which model answers what and why, and what is answered without a model."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from demo.installation import DemoFailed, Installation, running
from demo.questions import MIXED, POPULAR, REPEATED
from launcher.errors import LaunchError

IDENTICAL = 100


@dataclass(frozen=True)
class Answer:
    """An answer, and what its headers say. Times are in milliseconds from the request to the first and last token."""

    model: str
    text: str
    first_ms: float
    total_ms: float
    tokens: int
    headers: httpx.Headers


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """Stream a chat completion of the route `auto`.

    Raises:
        DemoFailed: the answer is an error.
    """
    began = time.perf_counter()
    first_ms, model, tokens = 0.0, "", 0
    text = []
    request = {"model": "auto", "stream": True, "stream_options": {"include_usage": True}, **body}
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.status_code != httpx.codes.OK:
            raise DemoFailed(f"The API answered {response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise DemoFailed(chunk["error"]["message"])
            model = chunk["model"]
            delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
            if content := delta.get("content") or delta.get("tool_calls"):
                first_ms = first_ms or _since(began)
                text.append(content if isinstance(content, str) else content[0]["function"].get("arguments") or "")
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return Answer(model, "".join(text), first_ms or _since(began), _since(began), tokens, response.headers)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


async def show_routes(client: httpx.AsyncClient) -> None:
    print("\n1. Routes: which model answers what, and why\n")
    print(f"  {'request':<58}  {'model':<6}  {'why (x-headrace-route)':<34}  first token")
    for title, body in MIXED:
        answer = await ask(client, body)
        shown = title if len(title) <= 58 else f"{title[:55]}..."
        why = answer.headers.get("x-headrace-route", "")
        print(f"  {shown:<58}  {answer.model:<6}  {why:<34}  {answer.first_ms:8.1f} ms")


async def show_cache(client: httpx.AsyncClient) -> None:
    print("\n2. Response cache: the same question again\n")
    for _ in range(3):
        answer = await ask(client, REPEATED)
        outcome, age = answer.headers.get("x-headrace-cache", "-"), answer.headers.get("age")
        print(
            f"  {outcome:<6}{answer.model:<7}{f'age {age} s' if age else '':<10}  first token {answer.first_ms:8.1f} ms"
            f"   all {answer.total_ms:8.1f} ms   {answer.tokens} tokens"
        )


async def show_coalescing(client: httpx.AsyncClient, identical: int) -> None:
    print(f"\n3. Coalescing: {identical} identical requests at once\n")
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, POPULAR) for _ in range(identical)))
    outcomes = Counter(answer.headers.get("x-headrace-cache", "-") for answer in answers)
    texts = {answer.text for answer in answers}
    print(f"  {', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())}")
    equal = "all answers are equal" if len(texts) == 1 else f"{len(texts)} different answers"
    print(f"  {outcomes['MISS']} run of a model; {equal}; {_since(began):.0f} ms for all")


async def show_savings(client: httpx.AsyncClient) -> None:
    print("\n4. What it saved (GET /v1/savings)\n")
    report = (await client.get("/v1/savings", params={"days": 1})).raise_for_status().json()
    answered, generated, route = report["answered"], report["generated"], report["routes"][0]
    _print_tokens("answered", answered)
    _print_tokens("  from the response cache", report["response_cache"])
    _print_tokens("  by coalescing", report["coalescing"])
    _print_tokens("  by models", generated)
    for model in route["models"]:
        _print_tokens(f"    {model['model']}", model)
    _print_tokens(f"saved for {route['baseline']['model']}, which alone would have answered all", route["saved"])


def _print_tokens(title: str, counts: dict[str, Any]) -> None:
    print(
        f"  {title:<60} {counts['requests']:>5,} requests {counts['prompt_tokens']:>7,} tokens of prompts"
        f" {counts['completion_tokens']:>7,} of answers"
    )


async def show(installation: Installation, identical: int) -> None:
    limits = httpx.Limits(max_connections=identical)
    headers = {"Authorization": f"Bearer {installation.key}"}
    async with httpx.AsyncClient(base_url=installation.url, headers=headers, limits=limits, timeout=300) as client:
        await show_routes(client)
        await show_cache(client)
        await show_coalescing(client, identical)
        await show_savings(client)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="show the output of the start")
    parser.add_argument(
        "--identical", type=int, default=IDENTICAL, help=f"identical requests at once (default: {IDENTICAL})"
    )
    arguments = parser.parse_args()
    try:
        print("Starting two models on this machine; the first start takes a minute or two.", flush=True)
        with running(verbose=arguments.verbose) as installation:
            asyncio.run(show(installation, arguments.identical))
            print("\nStopping. Try it with your own models: docs/routing.md, docs/caching.md, docs/context.md")
    except (DemoFailed, LaunchError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
