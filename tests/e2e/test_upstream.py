"""A model on an upstream server, with real processes: streams, usage, cancels, failures and failover."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from chaos.sse import read_events
from shared.domain.job import Usage
from shared.redis import keys
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.support.database import drop_database
from tests.support.faulty_upstream import Answer, End, FaultyUpstream, error_answer, faulty_upstream
from tests.support.ports import free_port
from tests.support.sse import follow, text_of
from tests.support.stack import KEY, Stack
from tests.support.vendors.responses import ResponsesVendor
from tests.support.vendors.script import Script
from tests.support.waiting import eventually

UPSTREAM_KEY = "sk-of-the-upstream"
PORT = free_port()
# The processes of the model whose jobs wait for a busy upstream, and of the one behind the Responses API.
PATIENT_WORKER = "worker-2"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API and a worker of each model, shared by the tests. Each test starts its own upstream."""
    model: dict[str, object] = {
        "name": "up",
        "engine": "openai",
        "model": "theirs",
        "slots": 8,
        "options": {
            "base_url": f"http://127.0.0.1:{PORT}/v1",
            "api_key_env": "UPSTREAM_API_KEY",
            "max_retries": 1,
            "max_wait_s": 0,
            "max_model_len": 1000,
        },
    }
    patient: dict[str, object] = {
        "name": "patient",
        "engine": "openai",
        "preset": "vllm",
        "model": "theirs",
        "options": {"base_url": f"http://127.0.0.1:{PORT}/v1", "max_retries": 0},
    }
    responses: dict[str, object] = {
        "name": "responses",
        "engine": "openai",
        "api": "responses",
        "model": "theirs",
        "options": {"base_url": f"http://127.0.0.1:{PORT}/v1"},
    }
    models = [model, patient, responses]
    stack = make_stack(servers, tmp_path_factory, "upstream", models, UPSTREAM_API_KEY=UPSTREAM_KEY)
    try:
        stack.start_api()
        stack.start_worker("up")
        assert stack.start_worker("patient") == PATIENT_WORKER
        stack.start_worker("responses")
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


async def submit(client: httpx.AsyncClient, model: str = "up") -> str:
    response = await client.post("/v1/jobs", json={"model": model, "messages": MESSAGES})
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


async def test_the_context_length_is_that_of_the_upstream(client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    """The worker was started before the upstream, and learns the length with the first request."""
    upstream.pages["/v1/models"] = {"data": [{"id": "theirs", "max_model_len": 1234}]}
    await wait_for_end(client, await submit(client, "patient"))

    async def known() -> bool:
        model = (await client.get("/v1/models/patient")).json()
        return bool(model["max_model_len"] == 1234)

    await eventually(known, "the context length")
    body = {"model": "patient", "messages": MESSAGES, "max_tokens": 1235}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"
    assert "1234" in response.json()["error"]["message"]


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


async def test_what_the_model_cannot_serve_is_rejected_at_submit(client: httpx.AsyncClient) -> None:
    capabilities = (await client.get("/v1/models/up")).json()["capabilities"]
    assert (capabilities["prompt_logprobs"], capabilities["resume"]) == (None, False)
    for path, body, param in (
        ("/v1/jobs", {"messages": MESSAGES, "prompt_logprobs": 1}, "prompt_logprobs"),
        ("/v1/chat/completions", {"messages": MESSAGES, "prompt_logprobs": 1}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1}, "logprobs"),
    ):
        rejected = await client.post(path, json={"model": "up", **body})
        assert rejected.status_code == 400
        error = rejected.json()["error"]
        assert error["param"] == param
        assert error["message"].startswith(f"{param}: the model `up` does not support log probabilities of the prompt;")


async def test_jobs_of_a_killed_worker(stack: Stack, client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    """An answer that a reader has seen cannot continue here; one that nobody has seen starts again."""
    upstream.answers = [Answer(3, End.SILENCE), Answer(3, End.SILENCE)]
    shown, unseen = await submit(client), await submit(client)
    await wait_for_text(client, shown, "0 1 2 ")
    async with Redis.from_url(stack.environment["REDIS_URL"]) as redis:

        async def logged() -> bool:
            entries: Any = await redis.xrevrange(keys.log(unseen), count=1)
            return bool(entries) and b"2 " in entries[0][1][b"e"]

        await eventually(logged, "the other answer is in its log")
    (worker,) = stack.workers("up")
    stack.kill(worker)
    stack.start_worker("up")
    done = await wait_for_end(client, shown)
    assert (done["status"], done["error"]["code"]) == ("failed", "cannot_continue")
    assert done["error"]["message"].startswith("The worker was lost after 3 tokens had been sent;")
    assert (done["output_text"], done["usage"]["completion_tokens"]) == ("0 1 2 ", 3)
    assert "job.restarted" not in [item.event for item in await follow(client, shown)]
    done = await wait_for_end(client, unseen)
    assert (done["status"], done["output_text"]) == ("completed", "0 1 2 ")
    assert done["usage"]["completion_tokens"] == 90
    assert len(upstream.seen) == 3


async def wait_until_deferred(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async def deferred() -> dict[str, Any] | None:
        job: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).json()
        return job if "not_before" in job else None

    return await eventually(deferred, "the job is deferred")


async def test_a_rate_limit_puts_the_job_back_into_the_queue(
    client: httpx.AsyncClient, sdk: openai.AsyncOpenAI, upstream: FaultyUpstream
) -> None:
    """A client of a stream sees nothing of it, and the job has one attempt in the end."""
    upstream.answers = [error_answer(429), error_answer(429)]
    stream = await sdk.chat.completions.create(model="patient", messages=MESSAGES, stream=True)
    job_id = await submit(client, "patient")
    waiting = await wait_until_deferred(client, job_id)
    assert (waiting["status"], waiting["attempts"], waiting["started_at"]) == ("queued", [], None)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "0 1 2 "
    events = await follow(client, job_id)
    assert text_of(events) == "0 1 2 "
    assert "job.restarted" not in [item.event for item in events]
    done = await wait_for_end(client, job_id)
    assert (done["status"], "not_before" in done, len(done["attempts"])) == ("completed", False, 1)


@pytest.mark.long
async def test_a_deferred_job_outlives_its_worker(
    stack: Stack, client: httpx.AsyncClient, upstream: FaultyUpstream
) -> None:
    """The timer dies with the worker; another one finds the job when it is due."""
    upstream.answers = [error_answer(503, retry_after="4")]
    job_id = await submit(client, "patient")
    not_before = (await wait_until_deferred(client, job_id))["not_before"]
    stack.kill(PATIENT_WORKER)
    stack.start_worker("patient")
    done = await wait_for_end(client, job_id)
    assert (done["status"], len(done["attempts"])) == ("completed", 1)
    assert done["started_at"] >= not_before


@pytest.mark.long
async def test_jobs_wait_while_the_upstream_is_away(client: httpx.AsyncClient) -> None:
    """The breaker opens, the API stays ready and says why, and a probe closes it."""
    job_ids = [await submit(client, "patient") for _ in range(6)]

    async def state() -> str:
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        return str(ready.json()["checks"]["model patient"])

    async def is_open() -> bool:
        return "upstream breaker open since" in await state()

    async def is_ok() -> bool:
        return await state() == "ok"

    await eventually(is_open, "the breaker is open")
    for job_id in job_ids:
        job = (await client.get(f"/v1/jobs/{job_id}")).json()
        assert (job["status"], job["attempts"]) == ("queued", [])
    async with faulty_upstream(PORT):
        for job_id in job_ids:
            assert (await wait_for_end(client, job_id))["status"] == "completed"
        await eventually(is_ok, "the breaker is closed")


async def test_responses_of_a_killed_worker(stack: Stack, client: httpx.AsyncClient) -> None:
    """One is killed in mid-stream, one before its first token: nothing is repeated, lost or generated again."""
    pieces = tuple(f"{number} " for number in range(40))
    async with ResponsesVendor().serve(PORT) as vendor:
        vendor.default = Script(text=pieces, reasoning=("Hm.",), usage=Usage(7, 3, 41, 1))
        vendor.gate = asyncio.Semaphore(5)
        (first,) = stack.workers("responses")
        shown = await submit(client, "responses")
        reader = asyncio.create_task(follow(client, shown))
        await wait_for_text(client, shown, "0 1 2 3 4 ")
        vendor.default = Script(text=pieces, usage=Usage(7, 3, 41, 1))
        silent = await submit(client, "responses")
        async with Redis.from_url(stack.environment["REDIS_URL"]) as redis:

            async def logged() -> bool:
                entries: Any = await redis.xrange(keys.log(silent))
                return any(fields[b"t"] == b"upstream" for _, fields in entries)

            await eventually(logged, "the id of the other response is in its log")
        stack.kill(first)
        for _ in range(200):
            vendor.gate.release()
        stack.start_worker("responses")
        events = await reader
        assert text_of(events) == "".join(pieces)
        assert [item.event for item in events if item.event not in ("job.delta", "job.queued")] == [
            "job.started", "job.started", "job.completed",
        ]  # fmt: skip
        assert not any("resp_" in str(item.data) for item in events)
        for job_id, attempts in ((shown, 2), (silent, 2)):
            done = await wait_for_end(client, job_id)
            assert (done["status"], done["output_text"]) == ("completed", "".join(pieces))
            assert (done["usage"]["completion_tokens"], len(done["attempts"])) == (41, attempts)
        assert text_of(await follow(client, shown)) == "".join(pieces)
        assert vendor.generated == 2
        assert [seen.method for seen in vendor.seen].count("POST") == 2

        vendor.default, vendor.cancelled = Script(hang_after=1), asyncio.Event()
        cancelled = await submit(client, "responses")
        await wait_for_text(client, cancelled, "Hi ")
        assert (await client.post(f"/v1/jobs/{cancelled}/cancel")).status_code < 300
        await asyncio.wait_for(vendor.cancelled.wait(), 10)
        assert (await wait_for_end(client, cancelled))["status"] == "cancelled"


async def test_tool_calls_of_other_servers_reach_each_api(
    client: httpx.AsyncClient, sdk: openai.AsyncOpenAI, upstream: FaultyUpstream
) -> None:
    """Two calls with the same index, no ids, one with an object for its arguments, and fragments that alternate."""
    alternating = [
        [call("a", 1, "f", ""), call("b", 2, "g", "")],
        [call(None, 2, None, '{"y":'), call(None, 1, None, '{"x": 1}')],
        [call(None, 2, None, "2}")],
    ]
    dialects = [
        [[call("a", 0, "f", '{"x": 1}')], [call("b", 0, "g", {"y": 2})]],
        [[call(None, None, "f", '{"x": 1}')], [call(None, None, "g", {"y": 2})]],
        alternating,
    ]
    tools: Any = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    for chunks in dialects:
        upstream.default = Answer(
            choices=tuple({"delta": {"tool_calls": fragments}} for fragments in chunks), finish_reason="stop"
        )
        stream = await sdk.chat.completions.create(model="up", messages=MESSAGES, tools=tools, stream=True)
        found: dict[int, list[str]] = {}
        reason = None
        async for chunk in stream:
            reason = chunk.choices[0].finish_reason or reason
            for fragment in chunk.choices[0].delta.tool_calls or ():
                assert fragment.function is not None
                parts = found.setdefault(fragment.index, ["", ""])
                parts[0] += fragment.function.name or ""
                parts[1] += fragment.function.arguments or ""
        assert [(name, json.loads(arguments)) for name, arguments in found.values()] == [
            ("f", {"x": 1}),
            ("g", {"y": 2}),
        ]
        assert reason == "tool_calls"
        body = {
            "model": "up",
            "max_tokens": 50,
            "messages": MESSAGES,
            "stream": True,
            "tools": [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")],
        }
        blocks: dict[int, str] = {}
        async with client.stream("POST", "/v1/messages", json=body) as response:
            async for item in read_events(response):
                data = item.data
                if item.event == "content_block_start":
                    blocks[data["index"]] = ""
                elif item.event == "content_block_delta":
                    blocks[data["index"]] += data["delta"]["partial_json"]
        assert [json.loads(text) for text in blocks.values()] == [{"x": 1}, {"y": 2}]


def call(call_id: str | None, index: int | None, name: str | None, arguments: Any) -> dict[str, Any]:
    """A fragment of a tool call; members that are None are omitted."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    members = {"id": call_id, "index": index}
    return {**{key: value for key, value in members.items() if value is not None}, "function": function}


async def test_a_refused_option_costs_no_answer(sdk: openai.AsyncOpenAI, upstream: FaultyUpstream) -> None:
    upstream.answers = [error_answer(422, "stream_options: Extra inputs are not permitted")]
    for _ in range(2):
        complete = await sdk.chat.completions.create(model="up", messages=MESSAGES)
        assert complete.choices[0].message.content == "0 1 2 "
    assert ["stream_options" in seen.body for seen in upstream.seen] == [True, False, False]


async def test_error_texts_do_not_show_the_inside(
    stack: Stack, sdk: openai.AsyncOpenAI, upstream: FaultyUpstream
) -> None:
    server = "http://vllm-3.models.svc.cluster.local:8000"
    upstream.answers = [error_answer(400, f"{server} refused the key {UPSTREAM_KEY[:9]}*** of /etc/llm/keys.yaml")]
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(model="up", messages=MESSAGES)
    assert "[address] refused the key *** of [path]" in caught.value.message
    log = "".join(path.read_text() for path in stack.folder.glob("worker*.log"))
    assert server in log
    assert UPSTREAM_KEY[:9] not in log
