"""The largest legal requests through the engines that have an API of their own, and a worker that dies in mid-answer.

As in test_large_requests.py, no step of the event loops of the API process and of the workers takes long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.e2e.test_large_requests import JOBS, JSON, REQUESTS, content_of
from tests.support.database import drop_database
from tests.support.ports import free_port
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.step_limit import MAX_STEP_MS
from tests.support.step_times import forget_steps, steps_above
from tests.support.vendors.catalog import ENGINES
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, Vendor
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.long

NAMES = ("triton", "replicate", "runpod")
PORTS = {name: free_port() for name in NAMES}
CONVERSATIONS = ("job-messages", "chat-messages", "chat-parts", "messages", "messages-blocks", "responses")
# Their texts are short.
PARTS = ("chat-parts", "messages-blocks")
CASES = [
    *((name, case) for name in NAMES for case in ("job-text", *CONVERSATIONS)),
    *(("runpod", case) for case in ("job-ids", "completions-ids", "chat-tools", "chat-parameters", "chat-arguments")),
]


def entry(name: str) -> dict[str, object]:
    vendor = ENGINES[name]()
    vendor.url = f"http://127.0.0.1:{PORTS[name]}"
    return vendor.spec().model_dump(mode="json", exclude_unset=True, by_alias=True) | {"name": name}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


def start_worker(stack: Stack, steps: Path, model: str) -> None:
    stack.start_worker(model, program=("tests.support.step_times", str(steps / f"worker-{model}"), "workers"))


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory, steps: Path) -> Iterator[Stack]:
    """An API process and a worker for each engine, which record their steps."""
    models = [entry(name) for name in NAMES]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "large_upstream",
        models,
        VENDOR_API_KEY=KEY,
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
    )
    try:
        stack.start("api", "tests.support.step_times", str(steps / "api"), "api")
        eventually_sync(stack._alive, "the API responds", within_s=60)
        for name in NAMES:
            start_worker(stack, steps, name)
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_large_upstream")


@pytest.fixture
async def client(stack: Stack, steps: Path) -> AsyncIterator[httpx.AsyncClient]:
    forget_steps(steps)
    async with stack.client() as client:
        yield client
    assert steps_above(MAX_STEP_MS, steps) == {}


def sent(vendor: Vendor) -> Any:
    return next(seen.body for seen in vendor.seen if seen.method == "POST")


@pytest.mark.parametrize(("name", "case"), CASES)
async def test_the_largest_requests(client: httpx.AsyncClient, name: str, case: str) -> None:
    path, body = REQUESTS[case]
    async with ENGINES[name]().serve(PORTS[name]) as vendor:
        response = await client.post(path, content=content_of(path, body, model=name), headers=JSON)
        assert response.status_code in (200, 202), response.text[:500]
        if path == JOBS:
            done = await wait_for_end(client, response.json()["id"])
            assert (done["status"], done["output_text"]) == ("completed", "Hi there")
        else:
            assert "Hi there" in response.text
        assert vendor.generated == 1
        size = len(str(sent(vendor)))
    assert size > (100_000 if case in PARTS else 2_500_000)


async def test_a_worker_that_dies_in_mid_answer_of_triton(client: httpx.AsyncClient, stack: Stack, steps: Path) -> None:
    """The next worker sends the largest prompt again, with the text so far at its end."""
    async with ENGINES["triton"]().serve(PORTS["triton"]) as vendor:
        vendor.scripts = [Script(hang_after=1)]
        vendor.default = Script(text=("there",))
        body = content_of(JOBS, REQUESTS["job-text"][1], model="triton", max_tokens=50)
        job_id = (await client.post(JOBS, content=body, headers=JSON)).json()["id"]
        async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as stream:
            async for line in stream.aiter_lines():
                if '"Hi' in line:
                    break
        following = asyncio.create_task(follow(client, job_id))
        (killed,) = stack.workers("triton")
        await asyncio.to_thread(stack.kill, killed)
        await asyncio.to_thread(start_worker, stack, steps, "triton")
        (steps / "worker-triton").write_bytes(b"")  # it had no jobs while it started
        done = await wait_for_end(client, job_id)
    assert (done["status"], done["output_text"]) == ("completed", "Hi there")
    assert text_of(await following) == "Hi there"
    assert [attempt["outcome"] for attempt in done["attempts"]] == ["worker_lost", "completed"]
    first, second = (seen.body["text_input"] for seen in vendor.seen)
    assert second == first + "Hi "
