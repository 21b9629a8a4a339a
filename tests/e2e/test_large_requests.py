"""The largest legal requests and answers of each API delay nobody: no step of an event loop takes long.

The loops of the API process and of the worker are measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.support.database import drop_database
from tests.support.examples import LONG as LONG_SUITE
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.step_limit import MAX_STEP_MS
from tests.support.step_times import forget_steps, steps_above
from tests.support.waiting import eventually, eventually_sync

MAX_BODY = 4 * 1024 * 1024
# `make test` checks a third of the jobs of a request, and answers of a third of the size: what takes a step per request
# or per answer is above its limit then too.
SHARE = 1 if LONG_SUITE else 3
JOBS, CHAT, COMPLETIONS = "/v1/jobs", "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files with the steps of each process."""
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory, steps: Path) -> Iterator[Stack]:
    """An API process and a worker that record their steps, with the default limits, and a worker for bystanders."""
    options = {"ttft_ms": 1, "itl_ms": 0, "default_tokens": 4, "max_model_len": 2_000_000}
    slow = {"ttft_ms": 1, "itl_ms": 20}
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": 32, "modalities": ["image"], "options": options},
        {"name": "slow", "engine": "simulated", "slots": 32, "options": slow},
    ]
    stack = make_stack(servers, tmp_path_factory, "large", models, HEADRACE_BATCH_POLL_S="0.2")
    try:
        stack.start("api", "tests.support.step_times", str(steps / "api"), "api")
        eventually_sync(stack._alive, "the API responds", within_s=60)
        stack.start_worker("sim", program=("tests.support.step_times", str(steps / "worker"), "workers"))
        stack.start_worker("slow")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_large")


@pytest.fixture
async def client(stack: Stack, steps: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client. A stream runs beside each test, at whose end the steps taken since its start are checked."""
    forget_steps(steps)
    async with stack.client() as client:
        bystander = (await client.post(JOBS, json={"model": "slow", "prompt": "x", "max_tokens": 3000})).json()
        following = asyncio.create_task(follow(client, bystander["id"]))
        await client.get(f"/v1/jobs/{bystander['id']}")
        yield client
        too_long = steps_above(MAX_STEP_MS, steps)
        await client.post(f"/v1/jobs/{bystander['id']}/cancel")
        assert text_of(await following) == (await wait_for_end(client, bystander["id"]))["output_text"]
        assert too_long == {}


TEXT = "the mill, " * 37
CONVERSATION = [{"role": ("user", "assistant")[position % 2], "content": TEXT} for position in range(9_999)]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 9_999}] * 12
TOOL = {
    "description": "d" * 3000,
    "parameters": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(20)}},
}
TOOLS = [{"type": "function", "function": {"name": f"f{number}", **TOOL}} for number in range(1000)]
# One object that belongs to the client: the parameters of a tool, or the arguments of an earlier call.
OBJECT = {"a": [{"key": "v" * 10}] * 180_000}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": OBJECT}}
IDS = [31_999] * 590_000
IMAGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3_000_000)).decode()
IMAGE_URL = f"data:image/png;base64,{IMAGE}"
SOURCE = {"type": "base64", "media_type": "image/png", "data": IMAGE}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "job-messages": (JOBS, {"messages": CONVERSATION}),
    "job-text": (JOBS, {"prompt": "the river mill, " * 260_000}),
    "job-ids": (JOBS, {"prompt": IDS}),
    "chat-messages": (CHAT, {"messages": CONVERSATION}),
    "chat-parts": (CHAT, {"messages": PARTS}),
    "chat-tools": (CHAT, {"messages": CONVERSATION[:1], "tools": TOOLS}),
    "chat-parameters": (
        CHAT,
        {
            "messages": CONVERSATION[:1],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": OBJECT}}],
        },
    ),
    "chat-arguments": (CHAT, {"messages": [*CONVERSATION[:1], {"role": "assistant", "tool_calls": [CALL]}]}),
    "completions-ids": (COMPLETIONS, {"prompt": IDS}),
    "completions-prompts": (COMPLETIONS, {"prompt": ["x" * 4000 * SHARE] * (1024 // SHARE)}),
    "messages": (MESSAGES, {"messages": CONVERSATION}),
    "messages-blocks": (MESSAGES, {"messages": PARTS}),
    "count-tokens": (MESSAGES + "/count_tokens", {"messages": CONVERSATION}),
    "responses": (RESPONSES, {"input": CONVERSATION}),
    "chat-image": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": IMAGE_URL}]}]}),
    "messages-image": (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}]}]}),
    "responses-image": (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": IMAGE_URL}]}]},
    ),
}


def content_of(path: str, body: dict[str, Any], **more: Any) -> bytes:
    limit = {} if path.endswith("count_tokens") else {"max_output_tokens" if path == RESPONSES else "max_tokens": 4}
    content = json.dumps({"model": "sim", **limit, **body, **more}, separators=(",", ":")).encode()
    assert MAX_BODY * 0.7 < len(content) <= MAX_BODY, len(content)
    return content


@pytest.mark.parametrize("idempotent", [False, pytest.param(True, marks=pytest.mark.long)], ids=["", "idempotent"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_the_largest_requests(client: httpx.AsyncClient, name: str, idempotent: bool) -> None:
    path, body = REQUESTS[name]
    headers = JSON | ({"Idempotency-Key": name} if idempotent else {})
    content = content_of(path, body)
    for _ in range(1 + idempotent):
        response = await client.post(path, content=content, headers=headers)
        assert response.status_code in (200, 202), response.text
    if path == JOBS:
        await wait_for_end(client, response.json()["id"])
        assert (await client.get(JOBS)).status_code == 200
    if path == RESPONSES:
        previous = response.json()["id"]
        assert (await client.get(f"{RESPONSES}/{previous}")).status_code == 200
        items = (await client.get(f"{RESPONSES}/{previous}/input_items", params={"limit": 100})).json()["data"]
        if name == "responses-image":
            assert items[0]["content"][0]["image_url"] == IMAGE_URL
            return
        assert len(items) == 100
        more = await client.post(RESPONSES, json={"model": "sim", "input": "x", "previous_response_id": previous})
        assert more.status_code == 400, "the conversation is too long"
        assert "previous_response_id: with the earlier turns" in more.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, b'{"model": "sim", "messages": [' + b"{}," * 150_000 + b"{}]}", "messages"),
        (JOBS, b'{"model": "sim", "prompt": [' + b"1," * 2_000_000 + b'"x"]}', "prompt"),
        (JOBS, b'{"model": "sim", "x": [' + b"[]," * 1_000_000 + b"[]]}", "more than 200000"),
        (JOBS, b"[" * 4_000_000, "more than 200000"),
        (COMPLETIONS, b'{"model": "sim", "prompt": ["' + b'\\u0041" , "' * 300_000, "not valid JSON"),
        (JOBS, b'{"model": "sim", "prompt": "x", ' + b",".join(b'"n%d": 1' % n for n in range(4000)) + b"}", ""),
        (MESSAGES, b'{"model": "sim", "max_tokens": 4, "messages": [' + b"[]," * 150_000 + b"[]]}", "messages"),
        (RESPONSES, b'{"model": "sim", "input": [' + b"{}," * 150_000 + b"{}]}", "input"),
    ],
    ids=["objects", "numbers", "lists", "depth", "strings", "members", "anthropic", "responses"],
)
async def test_large_invalid_requests(client: httpx.AsyncClient, path: str, body: bytes, message: str) -> None:
    response = await client.post(path, content=body, headers=JSON)
    if message:
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]


async def test_the_largest_lines_of_a_batch(client: httpx.AsyncClient) -> None:
    lines = [(name, content_of(*REQUESTS[name])) for name in ("chat-messages", "chat-parts", "chat-tools")]
    lines.append(("too-many-objects", b'{"model": "sim", "messages": [' + b"{}," * 1_000_000 + b"{}]}"))
    line = b'{"custom_id": "%b", "method": "POST", "url": "/v1/chat/completions", "body": %b}\n'
    content = b"".join(line % (name.encode(), body) for name, body in lines)
    uploaded = await client.post("/v1/files", files={"file": ("lines", content)}, data={"purpose": "batch"})
    created = {"input_file_id": uploaded.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = (await client.post("/v1/batches", json=created)).json()

    async def ended() -> dict[str, Any] | None:
        current: dict[str, Any] = (await client.get(f"/v1/batches/{batch['id']}")).json()
        return current if current["status"] == "completed" else None

    done = await eventually(ended, "the batch is completed", within_s=60)
    assert done["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    (error,) = (await client.get(f"/v1/files/{done['error_file_id']}/content")).text.splitlines()
    assert "more than 200000 objects and lists" in error


TOKENS, SCORED_TOKENS = 250_000 // SHARE, 12_000 // SHARE
# As many log probabilities as a request may ask for, in one choice and in 16.
ONE = {"prompt": "the mill", "max_tokens": SCORED_TOKENS, "logprobs": 20}
MANY = {"prompt": "the mill", "n": 16, "max_tokens": SCORED_TOKENS // 16, "logprobs": 20}
CHATTED = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20}
LONG = {"max_tokens": TOKENS}
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "job-one": (JOBS, ONE),
    "job-many": (JOBS, MANY),
    "job-long": (JOBS, {"prompt": "x", **LONG}),
    "chat-one": (CHAT, {**CHATTED, "max_tokens": SCORED_TOKENS}),
    "chat-many": (CHAT, {**CHATTED, "n": 16, "max_tokens": SCORED_TOKENS // 16}),
    "completions-one": (COMPLETIONS, ONE),
    "completions-many": (COMPLETIONS, MANY),
    "completions-echo": (
        COMPLETIONS,
        {"prompt": "the mill " * (5_900 // SHARE), "max_tokens": 4, "echo": True, "logprobs": 20},
    ),
    "messages-long": (MESSAGES, {"messages": [{"role": "user", "content": "x"}], **LONG}),
    "responses-one": (
        RESPONSES,
        {
            "input": "x",
            "max_output_tokens": SCORED_TOKENS,
            "top_logprobs": 20,
            "include": ["message.output_text.logprobs"],
        },
    ),
    "responses-long": (RESPONSES, {"input": "x", "max_output_tokens": TOKENS}),
}


@pytest.mark.parametrize("name", [name for name, (path, _) in ANSWERS.items() if path == JOBS])
async def test_the_largest_answers_of_jobs(client: httpx.AsyncClient, name: str) -> None:
    path, body = ANSWERS[name]
    job = (await client.post(path, json={"model": "sim", **body})).json()
    assert len(text_of(await follow(client, job["id"]))) > 1000
    done = await wait_for_end(client, job["id"])
    assert len(done["output"]) == body.get("n", 1)
    assert (await client.get(f"/v1/jobs/{job['id']}/stream", params={"starting_after": 2})).status_code == 200
    assert "output" not in (await client.get(JOBS)).json()["data"][0]
    listed = (await client.get(JOBS, params={"include": "output", "limit": 3})).json()["data"]
    assert done in listed


@pytest.mark.parametrize("streamed", [False, True], ids=["", "streamed"])
@pytest.mark.parametrize("name", [name for name, (path, _) in ANSWERS.items() if path != JOBS])
async def test_the_largest_answers(client: httpx.AsyncClient, name: str, streamed: bool) -> None:
    path, body = ANSWERS[name]
    body = {"model": "sim", **body}
    size = 0
    async with client.stream("POST", path, json={**body, "stream": streamed}) as response:
        assert response.status_code == 200
        async for chunk in response.aiter_bytes():
            size += len(chunk)
    assert size > 1_000_000 / SHARE
    if name == "responses-one":
        response_id = response.headers["x-headrace-job-id"].replace("job_", "resp_")
        found = (await client.get(f"{RESPONSES}/{response_id}")).json()
        assert len(found["output"][0]["content"][0]["logprobs"]) == SCORED_TOKENS


LONG_ONES = {
    "long": {"prompt": "x", **LONG},
    "one": ONE,
    "many": MANY,
    "prompt-logprobs": {"prompt": "the mill " * (6_000 // SHARE), "max_tokens": 4, "prompt_logprobs": 20},
}


async def test_the_largest_answers_continue_on_another_worker(
    client: httpx.AsyncClient, stack: Stack, steps: Path
) -> None:
    """A worker is killed in the middle of large answers; the next one takes over their logs."""
    jobs = {
        name: (await client.post(JOBS, json={"model": "sim", **body})).json()["id"] for name, body in LONG_ONES.items()
    }
    await read_some(client, jobs["long"], 200_000 // SHARE)
    (killed,) = stack.workers("sim")
    await asyncio.to_thread(stack.kill, killed)
    program = ("tests.support.step_times", str(steps / "next-worker"), "workers")
    await asyncio.to_thread(lambda: stack.start_worker("sim", program=program))
    (steps / "next-worker").write_bytes(b"")  # it had no jobs while it started
    for name, job_id in jobs.items():
        done = await wait_for_end(client, job_id)
        assert len(done["output"]) == LONG_ONES[name].get("n", 1)
        assert done["attempts"][-1]["outcome"] == done["status"]
        lost = ["worker_lost"] if len(done["attempts"]) > 1 else []
        assert [attempt["outcome"] for attempt in done["attempts"][:-1]] == lost
        assert text_of(await follow(client, job_id)) == done["output_text"]
    assert len((await wait_for_end(client, jobs["long"]))["attempts"]) == 2


async def read_some(client: httpx.AsyncClient, job_id: str, size: int) -> None:
    """Read this many bytes of a job's stream."""
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as response:
        async for chunk in response.aiter_bytes():
            size -= len(chunk)
            if size <= 0:
                return
