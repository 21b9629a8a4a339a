"""A model on an upstream server, with real processes: streams, usage, cancels, failures and failover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from chaos.sse import read_events
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.support.database import drop_database
from tests.support.faulty_upstream import Answer, End, FaultyUpstream, error_answer, faulty_upstream
from tests.support.ports import free_port
from tests.support.sse import follow, text_of
from tests.support.stack import KEY, Stack

UPSTREAM_KEY = "sk-of-the-upstream"
PORT = free_port()
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API and one worker, shared by the tests. Each test starts its own upstream."""
    model: dict[str, object] = {
        "name": "up",
        "engine": "openai",
        "model": "theirs",
        "slots": 8,
        "options": {
            "base_url": f"http://127.0.0.1:{PORT}/v1",
            "api_key_env": "UPSTREAM_API_KEY",
            "max_retries": 1,
            "max_model_len": 1000,
        },
    }
    stack = make_stack(servers, tmp_path_factory, "upstream", [model], UPSTREAM_API_KEY=UPSTREAM_KEY)
    try:
        stack.start_api()
        stack.start_worker("up")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_upstream")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


@pytest.fixture
async def sdk(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream(PORT) as upstream:
        yield upstream


async def submit(client: httpx.AsyncClient) -> str:
    response = await client.post("/v1/jobs", json={"model": "up", "messages": MESSAGES})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def wait_for_text(client: httpx.AsyncClient, job_id: str, text: str) -> None:
    """Wait until a reader of the stream has received `text`."""
    seen = ""
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as response:
        async for item in read_events(response):
            seen += text_of([item])
            if seen == text:
                return
    raise AssertionError(f"the stream ended after {seen!r}")


async def test_a_native_job(client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    upstream.answers = [error_answer(503, retry_after="0"), Answer(5)]
    job_id = await submit(client)
    assert text_of(await follow(client, job_id)) == "0 1 2 3 4 "
    done = await wait_for_end(client, job_id)
    assert (done["status"], done["output_text"]) == ("completed", "0 1 2 3 4 ")
    assert done["usage"] == {"prompt_tokens": 70, "completion_tokens": 90, "total_tokens": 160, "cached_tokens": 50}
    assert done["attempts"][0]["tokens"] == 90
    assert upstream.seen[0].headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert upstream.seen[0].body["model"] == "theirs"


async def test_chat_with_the_openai_client(sdk: openai.AsyncOpenAI, upstream: FaultyUpstream) -> None:
    complete = await sdk.chat.completions.create(model="up", messages=MESSAGES, max_tokens=50)
    assert complete.choices[0].message.content == "0 1 2 "
    assert complete.usage is not None
    assert (complete.usage.prompt_tokens, complete.usage.completion_tokens) == (70, 90)
    stream = await sdk.chat.completions.create(
        model="up", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "0 1 2 "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 90
    plain = await sdk.completions.create(model="up", prompt="Once")
    assert upstream.seen[-1].path == "/v1/completions"
    assert plain.choices[0].finish_reason == "stop"


async def test_a_cancel_disconnects_from_the_upstream(client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    upstream.answers = [Answer(3, End.SILENCE)]
    job_id = await submit(client)
    await wait_for_text(client, job_id, "0 1 2 ")
    assert (await client.post(f"/v1/jobs/{job_id}/cancel")).status_code < 300
    async with asyncio.timeout(10):
        await upstream.left.wait()
    done = await wait_for_end(client, job_id)
    assert (done["status"], done["output_text"]) == ("cancelled", "0 1 2 ")
    assert done["usage"]["completion_tokens"] == 3


async def test_an_upstream_error_fails_the_job(
    client: httpx.AsyncClient, sdk: openai.AsyncOpenAI, upstream: FaultyUpstream
) -> None:
    upstream.answers = [error_answer(500, "oops", retry_after="0")] * 4
    job_id = await submit(client)
    done = await wait_for_end(client, job_id)
    assert (done["status"], done["error"]["code"]) == ("failed", "upstream_error")
    assert done["error"]["message"] == "The upstream answered HTTP 500: oops."
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.chat.completions.create(model="up", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")


async def test_an_error_in_the_stream_keeps_its_text(client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    upstream.answers = [Answer(2, End.ERROR)]
    done = await wait_for_end(client, await submit(client))
    assert (done["status"], done["error"]["code"]) == ("failed", "upstream_error")
    assert (done["output_text"], done["usage"]["completion_tokens"]) == ("0 1 ", 2)


async def test_a_request_that_the_upstream_rejects(sdk: openai.AsyncOpenAI, upstream: FaultyUpstream) -> None:
    upstream.answers = [error_answer(400, "the prompt is too long")]
    with pytest.raises(openai.BadRequestError, match="the prompt is too long"):
        await sdk.chat.completions.create(model="up", messages=MESSAGES)


async def test_an_unavailable_upstream(stack: Stack, client: httpx.AsyncClient, sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.chat.completions.create(model="up", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")
    assert str(PORT) not in caught.value.message
    assert (await client.get("/readyz")).status_code == 200
    for log in stack.folder.glob("*.log"):
        assert UPSTREAM_KEY not in log.read_text()


async def test_max_tokens_above_the_context_is_rejected_at_submit(client: httpx.AsyncClient) -> None:
    body = {"model": "up", "messages": MESSAGES, "max_tokens": 1001}
    rejected = await client.post("/v1/jobs", json=body)
    assert rejected.status_code == 400
    assert rejected.json()["error"]["param"] == "max_tokens"


async def test_a_killed_workers_job_restarts(stack: Stack, client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    """The next worker repeats the request from the start, and readers get `job.restarted`."""
    upstream.answers = [Answer(3, End.SILENCE)]
    job_id = await submit(client)
    await wait_for_text(client, job_id, "0 1 2 ")
    stack.kill(next(name for name in stack.processes if name.startswith("worker-")))
    stack.start_worker("up")
    done = await wait_for_end(client, job_id)
    assert (done["status"], done["output_text"]) == ("completed", "0 1 2 ")
    assert done["usage"]["completion_tokens"] == 90
    assert "job.restarted" in [item.event for item in await follow(client, job_id)]
