"""Streams of responses across the loss of a worker, of an API process and of the event log."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import redis

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_outages import process_of
from tests.e2e.test_responses import events_of, wait_for_end
from tests.support.database import drop_database
from tests.support.stack import KEY, Stack

PARAMS: Any = {"model": "sim", "input": "Tell me about the mill.", "max_output_tokens": 200}


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API process and two workers that are slow enough to be killed during a stream."""
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": 4, "options": {"ttft_ms": 5, "itl_ms": 20}}
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "responses",
        models,
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
        HEADRACE_RESYNC_S=1,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_responses")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


def sdk_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
async def sdk(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with sdk_of(stack.url) as client:
        yield client


async def start_response(sdk: openai.AsyncOpenAI, count: int = 20) -> tuple[list[dict[str, Any]], AsyncIterator[Any]]:
    """Start a background response. Returns its first events and the rest of its stream."""
    stream = aiter(await sdk.responses.create(**PARAMS, background=True, stream=True))
    return [(await anext(stream)).to_dict() for _ in range(count)], stream


async def read_into(stream: AsyncIterator[Any], into: list[dict[str, Any]]) -> None:
    """Append the events of a stream until it ends or breaks."""
    async for event in stream:
        into.append(event.to_dict())  # noqa: PERF401  # a comprehension would discard the events of a stream that breaks


def job_id(events: list[dict[str, Any]]) -> str:
    found: str = events[0]["response"]["id"].replace("resp_", "job_")
    return found


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["sequence_number"] for event in events]


async def lose_worker(stack: Stack, client: httpx.AsyncClient, job: str, then: Callable[[], Any]) -> None:
    """Kill the worker that runs a job, call `then`, and start another worker."""
    stack.kill(await process_of(stack, client, job))
    then()
    await asyncio.to_thread(stack.start_worker, "sim")


async def test_the_worker_is_killed(stack: Stack, client: httpx.AsyncClient, sdk: openai.AsyncOpenAI) -> None:
    undisturbed = await sdk.responses.create(**PARAMS)
    seen, rest = await start_response(sdk)
    await lose_worker(stack, client, job_id(seen), lambda: None)
    await read_into(rest, seen)
    assert numbers(seen) == list(range(len(seen)))
    last = seen[-1]["response"]
    assert text_of(seen) == undisturbed.output_text == last["output"][0]["content"][0]["text"]
    assert [attempt["outcome"] for attempt in (await client.get(f"/v1/jobs/{job_id(seen)}")).json()["attempts"]] == [
        "worker_lost",
        "incomplete",
    ]
    assert (await sdk.responses.retrieve(last["id"])).to_dict() == last
    assert await events_of(sdk, last["id"]) == seen


async def test_the_api_process_is_killed(stack: Stack, sdk: openai.AsyncOpenAI) -> None:
    with stack.second_api() as url:
        async with sdk_of(url) as other:
            seen, rest = await start_response(other)
            killed = asyncio.create_task(asyncio.to_thread(stack.replace_api, url))
            with pytest.raises((httpx.TransportError, openai.APIConnectionError)):
                await read_into(rest, seen)
            assert not seen[-1]["type"].endswith("incomplete"), "the stream was interrupted"
            response_id = seen[0]["response"]["id"]
            seen += await events_of(sdk, response_id, seen[-1]["sequence_number"])
            await killed
        assert numbers(seen) == list(range(len(seen)))
        assert text_of(seen) == (await sdk.responses.retrieve(response_id)).output_text
        # A new process at the same address returns the same events.
        async with sdk_of(url) as again:
            assert await events_of(again, response_id) == seen


async def test_the_worker_is_killed_and_the_log_is_lost(
    stack: Stack, client: httpx.AsyncClient, sdk: openai.AsyncOpenAI
) -> None:
    undisturbed = await sdk.responses.create(**PARAMS)
    seen, rest = await start_response(sdk)
    with redis.Redis.from_url(stack.environment["REDIS_URL"]) as valkey:
        await lose_worker(stack, client, job_id(seen), functools.partial(valkey.delete, f"hr:log:{job_id(seen)}"))
    before = seen[-1]["sequence_number"]
    tail = [event.to_dict() async for event in rest]
    assert numbers(seen + tail) == sorted(set(numbers(seen + tail)))
    done = [event for event in tail if event["type"] == "response.output_item.done"]
    assert [event["item"]["status"] for event in done] == ["incomplete", "incomplete"]
    assert done[0]["output_index"] < done[1]["output_index"]
    response_id = seen[0]["response"]["id"]
    final = await wait_for_end(sdk, response_id)
    assert [item.to_dict() for item in final.output] == [done[1]["item"]]
    assert final.output_text == undisturbed.output_text
    # A client that resumes after the last event before the loss gets the same new answer as the connected one.
    resumed = await events_of(sdk, response_id, before)
    assert resumed == tail[-len(resumed) :]
    assert text_of(resumed) == undisturbed.output_text
