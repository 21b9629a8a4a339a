"""Files and batches in S3 through the official SDK, including an API process that is killed during an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_batches import create_batch, jsonl, line, results, wait_for_status
from tests.support.database import drop_database
from tests.support.s3 import BUCKET, S3, running_s3
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

PREFIX = "some/prefix"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as s3:
        yield s3


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Iterator[Stack]:
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": 5}}
    ]
    files = f"s3://{BUCKET}/{PREFIX}"
    settings: dict[str, Any] = {**s3.environment, "HEADRACE_FILES": files, "HEADRACE_BATCH_POLL_S": 0.2}
    stack = make_stack(servers, tmp_path_factory, "batches_s3", models, **settings)
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_batches_s3")


@pytest.fixture
async def sdk(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def test_a_batch_from_s3_to_s3(stack: Stack, sdk: openai.AsyncOpenAI, s3: S3) -> None:
    lines = [line(f"request-{number}", "the mill " * 20) for number in range(300)]
    batch = await create_batch(sdk, jsonl(*lines))
    done = await wait_for_status(sdk, batch, "completed")
    assert set(await results(sdk, done.output_file_id)) == {f"request-{number}" for number in range(300)}
    assert set(s3.keys()) == {f"{PREFIX}/{name}" for name in (batch.input_file_id, done.output_file_id)}
    assert not (stack.folder / "files").exists()
    for name in (batch.input_file_id, done.output_file_id):
        assert name is not None
        await sdk.files.delete(name)
    assert s3.keys() == []


async def test_a_partial_upload_is_never_visible(stack: Stack, sdk: openai.AsyncOpenAI, s3: S3) -> None:
    """First the client disconnects during an upload, then the API process is killed during one."""

    async def endless(sent: asyncio.Event) -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(16):
            yield b"x" * MIB
        sent.set()
        await asyncio.Event().wait()

    async def upload_endlessly(sent: asyncio.Event) -> None:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "multipart/form-data; boundary=b"}
        async with httpx.AsyncClient(base_url=stack.url, timeout=60) as client:
            await client.post("/v1/files", content=endless(sent), headers=headers)

    async def has_parts() -> bool:
        return s3.unfinished() != []

    async def has_no_parts() -> bool:
        return s3.unfinished() == []

    sent = asyncio.Event()
    upload = asyncio.create_task(upload_endlessly(sent))
    await asyncio.wait_for(sent.wait(), 30)
    await eventually(has_parts, "parts have arrived in S3")
    upload.cancel()
    await eventually(has_no_parts, "the abandoned upload is aborted")
    assert s3.keys() == []

    sent = asyncio.Event()
    upload = asyncio.create_task(upload_endlessly(sent))
    await asyncio.wait_for(sent.wait(), 30)
    await eventually(has_parts, "parts have arrived in S3")
    stack.kill("api")
    upload.cancel()  # it has nothing to send, so it does not notice the killed process
    await asyncio.wait([upload])
    stack.start_api()
    assert s3.keys() == [], "the partial upload is not visible"
    assert [file.id async for file in sdk.files.list()] == []
    assert (await sdk.files.create(file=("in.jsonl", b"x"), purpose="batch")).bytes == 1
