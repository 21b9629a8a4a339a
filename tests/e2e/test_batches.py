"""Files and batches through the official SDK, over real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import psutil
import pytest
from openai.types import Batch
from sqlalchemy import text

from shared.postgres.engine import connect
from tests.conftest import Servers
from tests.e2e.conftest import FAIL, make_stack
from tests.support.database import drop_database
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
MAX_LINES = 50_000
GROWTH_BYTES = 40 * 1024 * 1024


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One API process, and a worker for `sim`; `orphan` has none."""
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 4,
            "options": {"ttft_ms": 5, "itl_ms": 5, "fail_on": FAIL, "max_model_len": 200},
        },
        {"name": "orphan", "engine": "simulated"},
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "batches",
        models,
        HEADRACE_BATCH_JOBS=20,
        HEADRACE_BATCH_POLL_S=0.2,
        HEADRACE_LEASE_S=3,
        HEADRACE_HEARTBEAT_S=1,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_batches")


@pytest.fixture
async def sdk(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def line(custom_id: str, prompt: str = "the mill", **body: Any) -> dict[str, Any]:
    body = {"model": "sim", "messages": [{"role": "user", "content": prompt}], "max_tokens": 3, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return "".join(json.dumps(item) + "\n" for item in lines).encode()


async def create_batch(sdk: openai.AsyncOpenAI, content: bytes, **options: Any) -> Batch:
    file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
    return await sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", **options)


async def wait_for_status(sdk: openai.AsyncOpenAI, batch: Batch, *statuses: str, within_s: float = 60) -> Batch:
    async def probe() -> Batch | None:
        found = await sdk.batches.retrieve(batch.id)
        assert found.status in statuses or found.status not in ENDED, found
        return found if found.status in statuses else None

    return await eventually(probe, f"{batch.id} is {statuses}", within_s=within_s)


async def results(sdk: openai.AsyncOpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a file by their custom id, which must be unique."""
    if file_id is None:
        return {}
    lines = [json.loads(item) for item in (await sdk.files.content(file_id)).text.splitlines()]
    found = {item["custom_id"]: item for item in lines}
    assert len(found) == len(lines)
    return found


async def test_a_file_is_stored_unchanged(sdk: openai.AsyncOpenAI) -> None:
    content = b'{"any": "bytes"}\r\n\xff\x00--\r\n\n no end'
    file = await sdk.files.create(file=("Mühle 🌊.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(content), "Mühle 🌊.jsonl", "batch", "processed",
    )  # fmt: skip
    assert await sdk.files.retrieve(file.id) == file
    assert (await sdk.files.content(file.id)).content == content
    assert (await sdk.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await sdk.files.retrieve(file.id)


async def test_files_are_listed_by_page_order_and_purpose(stack: Stack) -> None:
    key = stack.command("api.keys", "create", "lister").stdout.strip()
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=key) as sdk:
        ids = [(await sdk.files.create(file=(f"{n}", b"x"), purpose="batch")).id for n in range(5)]
        assert [file.id async for file in sdk.files.list(limit=2)] == ids[::-1]
        assert [file.id async for file in sdk.files.list(limit=2, order="asc")] == ids
        assert [file.id async for file in sdk.files.list(after=ids[2])] == ids[1::-1]
        assert [file.id async for file in sdk.files.list(purpose="batch_output")] == []


@pytest.mark.parametrize(
    ("data", "files", "status", "param"),
    [
        ({"purpose": "fine-tune"}, {"file": ("a", b"x")}, 400, "purpose"),
        ({}, {"file": ("a", b"x")}, 400, "purpose"),
        ({"purpose": "batch"}, {"other": ("a", b"x")}, 400, "other"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, {"file": ("a", b"x")}, 400, "expires_after[anchor]"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            {"file": ("a", b"x")},
            400,
            "expires_after[seconds]",
        ),
        ({"purpose": "batch"}, {"file": ("a", b"")}, 400, "file"),
        ({"purpose": "batch"}, {"file": ("a", b"x\n" * 60_000)}, 400, "file"),
        ({"purpose": "batch", "file": "a field"}, {"a": ("b", b"")}, 400, "file"),
        ({"purpose": "batch"}, None, 400, None),
    ],
    ids=str,
)
async def test_an_invalid_upload_is_rejected_and_leaves_no_file(
    stack: Stack, data: Any, files: Any, status: int, param: str | None
) -> None:
    before = set((stack.folder / "files").glob("*"))
    async with stack.client() as client:
        response = await client.post("/v1/files", data=data, files=files)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
    assert set((stack.folder / "files").glob("*")) == before


async def test_an_upload_requires_a_key(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x")})
    assert response.status_code == 401


async def test_a_batch_survives_the_death_of_an_api_process(stack: Stack, sdk: openai.AsyncOpenAI) -> None:
    prompts = {f"request-{number}": f"the mill {number}" for number in range(200)}
    lines = [line(name, prompt) for name, prompt in prompts.items()]
    lines[7] = line("request-7", FAIL)
    lines[9] = line("request-9", "word " * 300)
    with stack.second_api() as second:
        batch = await create_batch(sdk, jsonl(*lines), metadata={"night": "1"})
        assert (batch.status, batch.endpoint, batch.metadata) == ("validating", CHAT, {"night": "1"})

        async def forty_completed() -> Batch | None:
            found = await sdk.batches.retrieve(batch.id)
            assert found.status not in ENDED, "the batch ended before the API process could be killed"
            counts = found.request_counts
            return found if counts is not None and counts.completed >= 40 else None

        partial = await eventually(forty_completed, "some requests have ended")
        assert partial.status == "in_progress"
        assert partial.request_counts is not None
        assert partial.request_counts.total == 200
        stack.kill("api")
        async with openai.AsyncOpenAI(base_url=f"{second}/v1", api_key=KEY) as other:
            done = await wait_for_status(other, batch, "completed")
            output = await results(other, done.output_file_id)
            errors = await results(other, done.error_file_id)
        stack.start_api()

    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (198, 2)
    assert done.in_progress_at is not None
    assert done.completed_at is not None
    assert set(output) | set(errors) == set(prompts)
    assert set(errors) == {"request-7", "request-9"}
    assert errors["request-7"]["response"]["status_code"] == 500
    assert errors["request-9"]["response"]["status_code"] == 400
    assert errors["request-9"]["response"]["body"]["error"]["param"] == "messages"
    answers = {name: item["response"]["body"]["choices"][0]["message"]["content"] for name, item in output.items()}
    assert all(answers.values())
    one = output["request-3"]
    assert (one["response"]["status_code"], one["error"]) == (200, None)
    assert one["response"]["body"]["usage"]["completion_tokens"] == 3
    assert done.usage is not None
    assert done.usage.output_tokens == 3 * 198

    engine = connect(stack.environment["DATABASE_URL"])
    async with engine.connect() as connection:
        query = "SELECT count(*), max(attempt) FROM jobs WHERE batch_id = :id"
        assert tuple((await connection.execute(text(query), {"id": batch.id})).one()) == (199, 1)
        query = "SELECT batch_line FROM jobs WHERE batch_id = :id ORDER BY batch_line"
        found = list((await connection.execute(text(query), {"id": batch.id})).scalars())
        assert found == [number for number in range(1, 201) if number != 10], (
            "no job for a line that exceeds the context"
        )
    await engine.dispose()

    synchronous = await sdk.chat.completions.create(
        model="sim", messages=[{"role": "user", "content": "the mill 3"}], max_tokens=3
    )
    assert synchronous.choices[0].message.content == answers["request-3"], "the synchronous call gives the same answer"


async def test_invalid_lines_are_reported_with_their_numbers(sdk: openai.AsyncOpenAI) -> None:
    content = jsonl(line("a"), line("b", temperature=9)) + b"oops\n" + jsonl(line("a"), line("c", model="gpt"))
    batch = await wait_for_status(sdk, await create_batch(sdk, content), "failed")
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.line, error.code, error.param) for error in batch.errors.data] == [
        (2, "invalid_request", "body.temperature"),
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "model_not_found", "body.model"),
    ]
    assert batch.failed_at is not None
    assert batch.output_file_id is None


async def test_a_cancelled_batch_keeps_its_completed_results(sdk: openai.AsyncOpenAI) -> None:
    lines = [line(f"fast-{number}") for number in range(5)]
    lines += [line(f"never-{number}", model="orphan") for number in range(30)]
    batch = await create_batch(sdk, jsonl(*lines))

    async def five_completed() -> bool:
        counts = (await sdk.batches.retrieve(batch.id)).request_counts
        return counts is not None and counts.completed == 5

    await eventually(five_completed, "all requests that have a worker have ended")
    assert (await sdk.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
    done = await wait_for_status(sdk, batch, "cancelled")
    assert done.cancelled_at is not None
    assert set(await results(sdk, done.output_file_id)) == {f"fast-{number}" for number in range(5)}
    errors = await results(sdk, done.error_file_id)
    assert set(errors) == {f"never-{number}" for number in range(30)}
    assert {item["error"]["code"] for item in errors.values()} == {"batch_cancelled"}
    assert (await sdk.batches.cancel(batch.id)).status == "cancelled"


async def test_plain_completions(sdk: openai.AsyncOpenAI) -> None:
    item = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "sim", "prompt": "the mill", "max_tokens": 3},
    }
    file = await sdk.files.create(file=("in.jsonl", jsonl(item)), purpose="batch")
    batch = await sdk.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    done = await wait_for_status(sdk, batch, "completed")
    output = await results(sdk, done.output_file_id)
    assert output["a"]["response"]["body"]["object"] == "text_completion"
    with pytest.raises(openai.ConflictError):
        await sdk.batches.cancel(batch.id)


async def test_responses(sdk: openai.AsyncOpenAI) -> None:
    """Lines of the Responses API get the same answers as synchronous calls, except for ids."""
    request: dict[str, Any] = {"model": "sim", "input": "the mill", "max_output_tokens": 3, "instructions": "Be brief."}
    tool = {"type": "function", "name": "turn", "parameters": {"type": "object", "properties": {}}, "strict": False}
    bodies = {"a": request, "b": {**request, "tools": [tool], "max_output_tokens": 40}, "c": {**request, "input": FAIL}}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/responses", "body": body} for name, body in bodies.items()
    ]
    file = await sdk.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
    batch = await sdk.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    done = await wait_for_status(sdk, batch, "completed")
    output = await results(sdk, done.output_file_id)
    assert set(output) == {"a", "b"}
    assert set(await results(sdk, done.error_file_id)) == {"c"}
    answer = output["a"]["response"]["body"]
    synchronous = (await sdk.responses.create(**request, store=False)).model_dump(mode="json")
    assert answer["output"][0]["content"][0]["text"] == synchronous["output"][0]["content"][0]["text"]
    assert (answer["object"], answer["status"]) == ("response", "incomplete")
    assert answer["usage"]["output_tokens"] == 3
    assert [item["type"] for item in output["b"]["response"]["body"]["output"]] == ["function_call"]
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(answer["id"])


async def test_batches_are_listed_by_page(stack: Stack) -> None:
    key = stack.command("api.keys", "create", "batcher").stdout.strip()
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=key) as sdk:
        ids = [(await create_batch(sdk, b"oops")).id for _ in range(3)]
        assert [batch.id async for batch in sdk.batches.list(limit=2)] == ids[::-1]


async def test_another_projects_files_and_batches_return_404(stack: Stack, sdk: openai.AsyncOpenAI) -> None:
    batch = await create_batch(sdk, jsonl(line("a", model="orphan")))
    key = stack.command("api.keys", "create", "stranger").stdout.strip()
    file, batches = f"/v1/files/{batch.input_file_id}", f"/v1/batches/{batch.id}"
    async with stack.client(headers={"Authorization": f"Bearer {key}"}) as other_client:
        body = {"input_file_id": batch.input_file_id, "endpoint": CHAT, "completion_window": "24h"}
        answers = [
            await other_client.get(file),
            await other_client.get(f"{file}/content"),
            await other_client.delete(file),
            await other_client.post("/v1/batches", json=body),
            await other_client.get(batches),
            await other_client.post(f"{batches}/cancel"),
        ]
    assert [answer.status_code for answer in answers] == [404] * 6
    with pytest.raises(openai.ConflictError):
        await sdk.files.delete(batch.input_file_id)
    await sdk.batches.cancel(batch.id)
    await wait_for_status(sdk, batch, "cancelled")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "721h"}, "completion_window"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"input_file_id": None}, "input_file_id"),
        ({"output_expires_after": {"seconds": 3600}}, "output_expires_after.anchor"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
            "output_expires_after.seconds",
        ),
    ],
    ids=str,
)
async def test_an_invalid_batch_is_rejected(stack: Stack, sdk: openai.AsyncOpenAI, changes: Any, param: str) -> None:
    file = await sdk.files.create(file=("in.jsonl", b"x"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **changes}
    async with stack.client() as client:
        response = await client.post("/v1/batches", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_an_output_file_is_rejected_as_input(sdk: openai.AsyncOpenAI) -> None:
    done = await wait_for_status(sdk, await create_batch(sdk, jsonl(line("a"))), "completed")
    assert done.output_file_id is not None
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await sdk.batches.create(input_file_id=done.output_file_id, endpoint=CHAT, completion_window="24h")


async def test_files_expire_as_requested(sdk: openai.AsyncOpenAI) -> None:
    file = await sdk.files.create(
        file=("in.jsonl", jsonl(line("a"), line("b", FAIL))),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert file.expires_at == file.created_at + 7200
    batch = await sdk.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    done = await wait_for_status(sdk, batch, "completed")
    for file_id in (done.output_file_id, done.error_file_id):
        assert file_id is not None
        result = await sdk.files.retrieve(file_id)
        assert result.expires_at == result.created_at + 3600
    default = await sdk.files.create(file=("in.jsonl", b"x"), purpose="batch")
    assert default.expires_at == default.created_at + 30 * 24 * 3600, "the default"


async def test_blank_lines_are_skipped_but_numbered(sdk: openai.AsyncOpenAI) -> None:
    good = b"\n" + jsonl(line("a")) + b" \t\r\n\n" + jsonl(line("b")) + b"\n\n"
    done = await wait_for_status(sdk, await create_batch(sdk, good), "completed")
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed) == (2, 2)
    assert set(await results(sdk, done.output_file_id)) == {"a", "b"}
    failed = await wait_for_status(sdk, await create_batch(sdk, b"\n\n\n\noops\n"), "failed")
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [error.line for error in failed.errors.data] == [5], "blank lines count"


async def test_memory_stays_flat_for_a_long_file(stack: Stack, sdk: openai.AsyncOpenAI, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        for number in range(MAX_LINES - 1):
            file.write(jsonl(line(f"request-{number}", "the mill " * 440)))
        file.write(jsonl(line("request-0")))
    assert path.stat().st_size > 195_000_000, "close to the limits of lines and bytes"
    process = psutil.Process(stack.processes["api"].pid)
    await wait_for_status(sdk, await create_batch(sdk, b"oops"), "failed")  # load what the first batch loads
    before = process.memory_info().rss
    peak = before

    async def track_peak() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.05)

    tracking = asyncio.create_task(track_peak())
    uploaded = await sdk.files.create(file=path, purpose="batch")
    batch = await sdk.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
    done = await wait_for_status(sdk, batch, "failed", within_s=120)
    tracking.cancel()
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(error.line, error.code) for error in done.errors.data] == [(MAX_LINES, "duplicate_custom_id")]
    assert peak - before < GROWTH_BYTES, f"grew by {(peak - before) / 1e6:.0f} MB"
