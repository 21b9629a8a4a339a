"""The largest legal requests and answers of each API delay nobody: no step of the API's event loop takes long."""

from __future__ import annotations

import asyncio
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
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.step_times import longest_step_ms
from tests.support.waiting import eventually_sync

MAX_STEP_MS = 20



@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the steps of the API's event loop."""
    return tmp_path_factory.mktemp("steps") / "steps"


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory, steps: Path) -> Iterator[Stack]:
    """An API process that records its steps, with the default limits, and a worker."""
    options = {"ttft_ms": 1, "itl_ms": 0, "default_tokens": 4}
    models: list[dict[str, object]] = [{"name": "sim", "engine": "simulated", "slots": 32, "options": options}]
    stack = make_stack(servers, tmp_path_factory, "large", models, HEADRACE_BATCH_POLL_S="0.2")
    try:
        stack.start("api", "tests.support.step_times", str(steps), "api")
        eventually_sync(stack._alive, "the API responds", within_s=60)
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_large")


@pytest.fixture
async def client(stack: Stack, steps: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client. At the end of the test, checks the steps taken since."""
    async with stack.client() as client:
        await client.post("/v1/jobs", json={"model": "sim", "prompt": "x"})  # imports and connections
        steps.write_bytes(b"")
        yield client
        print(steps.read_text())
        taken, what = longest_step_ms(steps)
        assert taken <= MAX_STEP_MS, what


def fill(body: dict[str, Any], items: list[Any], item: Any) -> dict[str, Any]:
    """Append an item to a list in a body until the body has the maximum size."""
    size = len(json.dumps(item)) + 2
    items += [item] * min(10_000 - len(items), (
    return body


def many_messages(text: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[position % 2], "content": text} for position in range(9_999)]


TEXT = "the mill, " * 39
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "job-messages": ("/v1/jobs", {"messages": many_messages(TEXT)}),
    "job-text": ("/v1/jobs", {"prompt": "the river mill, " * 260_000}),
    "job-ids": ("/v1/jobs", {"prompt": [31_999] * 590_000}),
    "chat": ("/v1/chat/completions", {"messages": many_messages(TEXT)}),
    "chat-parts": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 120_000}]}),
    "chat-tools": ("/v1/chat/completions", {
        "messages": many_messages("x")[:1],
        "tools": [{"type": "function", "function": {"name": f"f{number}", "description": "d" * 3000, "parameters":
            {"type": "object", "properties": {f"p{k}": {"type": "string"} for k in range(20)}}}} for number in range(1000)],
    }),
    "completion-ids": ("/v1/completions", {"prompt": [31_999] * 590_000}),
    "completion-prompts": ("/v1/completions", {"prompt": ["x" * 4000] * 1024}),
    "messages": ("/v1/messages", {"messages": many_messages(TEXT)}),
    "messages-blocks": ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 380}] * 10_000}]}),
    "responses": ("/v1/responses", {"input": many_messages(TEXT)}),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("idempotent", [False, True])
async def test_large_requests(client: httpx.AsyncClient, name: str, idempotent: bool) -> None:
    path, body = LARGE[name]
    content = json.dumps({"model": "sim", "max_tokens" if path != "/v1/responses" else "max_output_tokens": 4, **body}, separators=(",", ":"))
    assert len(content) <= 4 * 1024 * 1024, len(content)
    headers = {"Content-Type": "application/json"}
    if idempotent:
        headers["Idempotency-Key"] = "k" + name
    response = await client.post(path, content=content, headers=headers)
    print(len(content), response.status_code, response.text[:200])
    if path == "/v1/jobs":
        r = await client.get(f"/v1/jobs/{response.json()['id']}"); print(r.status_code)
