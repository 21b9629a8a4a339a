"""Limits of projects, keys, end users and models over HTTP, with the official SDKs, on real processes."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import asyncpg
import httpx
import openai
import pytest
import redis as sync_redis

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end, wait_until_running
from tests.e2e.test_projects import bearer, create_key, key_id
from tests.support.database import drop_database
from tests.support.metrics import samples
from tests.support.stack import Stack
from tests.support.waiting import eventually

# The numbers of a window in Redis, as in `shared/redis/rate_limits.lua`.
HEADER = "<dddddd"
HELLO: Any = [{"role": "user", "content": "How high is the water?"}]
JOB: dict[str, Any] = {"model": "sim", "prompt": "the mill", "max_tokens": 2}


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One API process, a fast worker for `sim` and a slow one for `slow`."""
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "options": {"ttft_ms": 1, "itl_ms": 1, "max_model_len": 4096}},
        {"name": "slow", "engine": "simulated", "slots": 2, "options": {"ttft_ms": 5, "itl_ms": 20}},
    ]
    stack = make_stack(servers, tmp_path_factory, "limits", models, HEADRACE_BATCH_POLL_S=0.2)
    try:
        stack.start_api()
        stack.start_workers(["sim", "slow"])
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_limits")


@pytest.fixture(scope="module")
def admin_key(stack: Stack) -> str:
    return create_key(stack, "operator", "--project", "operations", "--scope", "admin")


@pytest.fixture
async def admin(stack: Stack, admin_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(stack, admin_key) as client:
        yield client


async def create_limit(admin: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await admin.post("/v1/admin/limits", json=body)
    assert response.status_code == 200, response.text
    limit: dict[str, Any] = response.json()
    return limit


async def left(admin: httpx.AsyncClient, limit: dict[str, Any], unit: str) -> int:
    remaining: int = (await admin.get(f"/v1/admin/limits/{limit['id']}")).json()["left"][unit]["remaining"]
    return remaining


def let_time_pass(stack: Stack, seconds: int) -> None:
    """Make the windows of all limits older, as if so much time had passed."""
    with sync_redis.Redis.from_url(stack.environment["REDIS_URL"]) as client:
        for key in client.scan_iter("hr:rate:*"):
            fields: Any = client.hgetall(key)
            amount, first, last, seen, shift, taken = struct.unpack(HEADER, fields.pop(b"h"))
            older: dict[Any, Any] = {int(name) - seconds: value for name, value in fields.items()}
            older["h"] = struct.pack(HEADER, amount, first - seconds, last - seconds, seen - seconds, shift, taken)
            client.delete(key)
            client.hset(key, mapping=older)


async def test_a_refused_call_succeeds_after_the_wait_that_the_server_names(
    stack: Stack, admin: httpx.AsyncClient
) -> None:
    """The official SDK waits as long as the server says, and then succeeds; other projects are not limited."""
    key = create_key(stack, "waits")
    await create_limit(admin, project="waits", requests_per_minute=2)
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0) as client:
        for remaining in ("1", "0"):
            raw = await client.chat.completions.with_raw_response.create(model="sim", messages=HELLO, max_tokens=2)
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
            assert raw.headers["x-ratelimit-remaining-requests"] == remaining
            assert raw.headers["x-ratelimit-reset-requests"].startswith("1m")
            assert "x-ratelimit-limit-tokens" not in raw.headers
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="sim", messages=HELLO, max_tokens=2)
        error, headers = caught.value, caught.value.response.headers
        assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert "2 requests a minute of this project (limit_" in error.message
        assert headers["x-ratelimit-remaining-requests"] == "0"
        exact_ms = int(headers["retry-after-ms"])
        assert 55_000 < exact_ms <= 61_000
        assert int(headers["retry-after"]) == -(-exact_ms // 1000)

        let_time_pass(stack, exact_ms // 1000 - 1)
        began = time.monotonic()
        patient = client.with_options(max_retries=1)
        answer = await patient.chat.completions.create(model="sim", messages=HELLO, max_tokens=2)
        assert answer.usage is not None
        assert time.monotonic() - began > 0.2, "it was refused first"
    async with bearer(stack, create_key(stack, "neighbour")) as other:
        response = await other.post("/v1/jobs", json=JOB)
        assert response.status_code == 202
        assert not any(name.startswith("x-ratelimit") for name in response.headers)
    refused = (await samples(stack, "api"))["headrace_rate_limited_total", "refused", "project", "requests"]
    assert refused >= 2


async def test_anthropics_headers(stack: Stack, admin: httpx.AsyncClient) -> None:
    key = create_key(stack, "anthropic")
    await create_limit(admin, project="anthropic", requests_per_minute=2, tokens_per_minute=1000)
    async with anthropic.AsyncAnthropic(base_url=stack.url, api_key=key, max_retries=0) as client:
        raw = await client.messages.with_raw_response.create(model="sim", messages=HELLO, max_tokens=100)
        assert raw.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert 800 <= int(raw.headers["anthropic-ratelimit-tokens-remaining"]) < 900
        assert raw.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
        assert not any(name.startswith("x-ratelimit") for name in raw.headers)
        # Counting takes a request, and no tokens.
        counted = await client.messages.with_raw_response.count_tokens(model="sim", messages=HELLO)
        assert counted.headers["anthropic-ratelimit-requests-remaining"] == "0"
        for call in (client.messages.create(model="sim", messages=HELLO, max_tokens=9),
                     client.messages.count_tokens(model="sim", messages=HELLO)):  # fmt: skip
            with pytest.raises(anthropic.RateLimitError) as caught:
                await call
            assert 0 < int(caught.value.response.headers["retry-after"]) <= 61
            assert caught.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"


async def test_every_way_to_create_work_is_limited(stack: Stack, admin: httpx.AsyncClient) -> None:
    async with bearer(stack, create_key(stack, "ways")) as client:
        ended = await client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "first"})
        await wait_for_end(client, ended.json()["id"])
        limit = await create_limit(admin, project="ways", requests_per_minute=1)
        assert (await client.post("/v1/jobs", json=JOB)).status_code == 202
        for path, body in (
            ("/v1/jobs", JOB),
            ("/v1/chat/completions", {"model": "sim", "messages": HELLO}),
            ("/v1/chat/completions", {"model": "sim", "messages": HELLO, "stream": True}),
            ("/v1/completions", {"model": "sim", "prompt": ["a"]}),
            ("/v1/responses", {"model": "sim", "input": "x", "background": True}),
            ("/v1/messages", {"model": "sim", "messages": HELLO, "max_tokens": 2}),
            ("/v1/messages/count_tokens", {"model": "sim", "messages": HELLO}),
            ("/v1/usage/estimate", JOB),
            (f"/v1/jobs/{ended.json()['id']}/replay", None),
        ):
            response = await client.post(path, json=body)
            assert response.status_code == 429, (path, response.text)
            assert int(response.headers["retry-after-ms"]) > 0
        again = await client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "first"})
        assert (again.status_code, again.json()["id"]) == (200, ended.json()["id"]), "a retry gets its job"
        # What a retry took is given back.
        assert (await admin.delete(f"/v1/admin/limits/{limit['id']}")).json()["deleted"] is True
        limit = await create_limit(admin, project="ways", requests_per_minute=3)
        await client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "first"})
        await eventually(lambda: _left_is(admin, limit, "requests", 2), "the retry's request is given back")


async def test_a_call_with_several_prompts_takes_all_of_its_requests_or_none(
    stack: Stack, admin: httpx.AsyncClient
) -> None:
    async with bearer(stack, create_key(stack, "prompts")) as client:
        limit = await create_limit(admin, project="prompts", requests_per_minute=4)

        async def complete(prompts: int, **headers: str) -> httpx.Response:
            return await client.post("/v1/completions", json=JOB | {"prompt": ["the mill"] * prompts}, headers=headers)

        never = await complete(5)
        assert (never.status_code, never.headers["x-should-retry"]) == (429, "false")
        assert "it needs 5 requests, and the limit is 4 requests a minute" in never.json()["error"]["message"]
        assert await left(admin, limit, "requests") == 4
        assert (await complete(2)).status_code == 200
        refused = await complete(3)
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        await eventually(lambda: _left_is(admin, limit, "requests", 2), "its requests are given back")
        assert (await complete(5, **{"Idempotency-Key": "five"})).headers["x-should-retry"] == "false"
        await eventually(lambda: _left_is(admin, limit, "requests", 2), "its requests are given back")
        assert (await complete(2)).status_code == 200


async def _left_is(admin: httpx.AsyncClient, limit: dict[str, Any], unit: str, expected: int) -> bool:
    return await left(admin, limit, unit) == expected


async def test_tokens_are_reserved_and_settled_also_if_the_client_leaves(
    stack: Stack, admin: httpx.AsyncClient
) -> None:
    async with bearer(stack, create_key(stack, "leaves")) as client:
        limit = await create_limit(admin, project="leaves", tokens_per_minute=10_000)
        body = {"model": "slow", "messages": HELLO, "max_tokens": 4000, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            job_id = response.headers["x-headrace-job-id"]
            assert await left(admin, limit, "tokens") <= 6000
            async for _ in response.aiter_bytes():
                break
        job = await wait_for_end(client, job_id)
        assert job["status"] == "cancelled"
        used = job["usage"]["prompt_tokens"] + job["usage"]["completion_tokens"]
        assert used < 1000
        await eventually(lambda: _left_is(admin, limit, "tokens", 10_000 - used), "the tokens are settled")
        await admin.patch(f"/v1/admin/limits/{limit['id']}", json={"tokens_per_minute": 500})
        too_large = await client.post("/v1/jobs", json=JOB | {"max_tokens": 1000})
        assert (too_large.status_code, too_large.headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in too_large.headers


async def test_scopes(stack: Stack, admin: httpx.AsyncClient) -> None:
    """Of one key, of each end user, and of a model."""
    one, two = (create_key(stack, name, "--project", "scopes") for name in ("one", "two"))
    of_key = await create_limit(admin, key_id=key_id(stack, one), requests_per_minute=1)
    assert of_key["project"] == "scopes"
    await create_limit(admin, project="scopes", end_user="*", requests_per_minute=2)
    await create_limit(admin, project="scopes", model="slow", requests_per_minute=1)
    async with bearer(stack, one) as first, bearer(stack, two) as second:

        async def status(client: httpx.AsyncClient, user: str, model: str = "sim") -> int:
            return (await client.post("/v1/jobs", json=JOB | {"user": user, "model": model})).status_code

        assert [await status(first, "ann"), await status(first, "ann")] == [202, 429]
        assert [await status(second, "ann"), await status(second, "ann")] == [202, 429]
        assert [await status(second, "bob", "slow"), await status(second, "eve", "slow")] == [202, 429]
        refused = await second.post("/v1/jobs", json=JOB | {"user": "eve", "model": "slow"})
        assert "this project with the model `slow`" in refused.json()["error"]["message"]
        assert [await status(second, "eve"), await status(second, "eve"), await status(second, "eve")] == [
            202,
            202,
            429,
        ]


async def test_soft_limits_delay_jobs(stack: Stack, admin: httpx.AsyncClient) -> None:
    async with bearer(stack, create_key(stack, "soft")) as client:
        await create_limit(admin, project="soft", requests_per_minute=1, mode="soft")
        assert (await client.post("/v1/jobs", json=JOB)).status_code == 202
        let_time_pass(stack, 58)
        late = await client.post("/v1/jobs", json=JOB)
        assert (late.status_code, late.headers["x-ratelimit-remaining-requests"]) == (202, "0")
        job = late.json()
        assert job["status"] == "queued"
        assert job["not_before"] > job["created_at"]
        ended = await wait_for_end(client, job["id"])
        assert ended["status"] in ("completed", "incomplete")
        assert ended["started_at"] >= job["not_before"]


async def test_batches_wait_for_limits(stack: Stack, admin: httpx.AsyncClient) -> None:
    """Lines are submitted as the limit allows, and none is refused."""
    async with bearer(stack, create_key(stack, "lines")) as client:
        limit = await create_limit(admin, project="lines", requests_per_minute=5)
        lines = [
            json.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": JOB}) for n in range(7)
        ]
        form = {"purpose": (None, "batch"), "file": ("in.jsonl", "\n".join(lines))}
        file = (await client.post("/v1/files", files=form)).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = (await client.post("/v1/batches", json=body)).json()

        async def completed(count: int) -> bool:
            found = (await client.get(f"/v1/batches/{batch['id']}")).json()
            return bool(found["request_counts"]["completed"] == count)

        await eventually(lambda: completed(4), "a part of the limit is used")
        assert await left(admin, limit, "requests") == 1, "and the rest is left for others"
        assert (await client.post("/v1/jobs", json=JOB)).status_code == 202
        held = "headrace_batch_lines_held_total"
        await eventually(lambda: _sample_is_positive(stack, held), "the batch waits")
        let_time_pass(stack, 61)
        await eventually(lambda: completed(7), "all lines are done")
        result = (await client.get(f"/v1/batches/{batch['id']}")).json()
        assert result["request_counts"] == {"total": 7, "completed": 7, "failed": 0}


async def _sample_is_positive(stack: Stack, name: str) -> bool:
    return (await samples(stack, "api")).get((name,), 0) > 0


async def test_limits_of_jobs_and_streams(stack: Stack, admin: httpx.AsyncClient) -> None:
    async with bearer(stack, create_key(stack, "counts")) as client:
        limit = await create_limit(admin, project="counts", end_user="*", concurrent_jobs=1, open_streams=1)
        job = JOB | {"model": "slow", "max_tokens": 2000, "user": "ann"}
        running = (await client.post("/v1/jobs", json=job)).json()["id"]
        await wait_until_running(client, running)
        refused = await client.post("/v1/jobs", json=job)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
        assert f"1 queued and running jobs, the maximum ({limit['id']})" in refused.json()["error"]["message"]
        assert "'ann'" in refused.json()["error"]["message"]
        assert (await client.post("/v1/jobs", json=JOB | {"user": "bob"})).status_code == 202
        async with client.stream("GET", f"/v1/jobs/{running}/stream") as response:
            assert response.status_code == 200
            second = await client.get(f"/v1/jobs/{running}/stream")
            assert second.status_code == 429
            assert f"1 open streams of the end user 'ann' at this server, the maximum ({limit['id']})" in second.text
        await client.post(f"/v1/jobs/{running}/cancel")
        await wait_for_end(client, running)
        assert (await client.post("/v1/jobs", json=job | {"max_tokens": 2})).status_code == 202
        # The quota of the settings, 10,000, is replaced for this project.
        of_project = await create_limit(admin, project="counts", queued_jobs=1)
        responses = await asyncio.gather(*(client.post("/v1/jobs", json=JOB | {"user": str(n)}) for n in range(20)))
        messages = {response.json()["error"]["message"] for response in responses if response.status_code == 429}
        assert messages
        assert all(of_project["id"] in message for message in messages)


async def test_limits_are_managed_and_audited(stack: Stack, admin: httpx.AsyncClient) -> None:
    create_key(stack, "managed")
    created = await create_limit(admin, project="managed", model="sim", requests_per_minute=5, queued_jobs=7)
    assert created["created_at"] is not None
    assert {name: created[name] for name in ("object", "mode", "key_id", "end_user", "tokens_per_minute", "left")} == {
        "object": "limit", "mode": "hard", "key_id": None, "end_user": None, "tokens_per_minute": None, "left": None,
    }  # fmt: skip
    path = f"/v1/admin/limits/{created['id']}"
    assert (await admin.post("/v1/admin/limits", json={"project": "managed", "model": "sim", "open_streams": 1})
            ).status_code == 409  # fmt: skip
    changed = await admin.patch(path, json={"requests_per_minute": None, "tokens_per_minute": 100})
    assert [changed.json()[name] for name in ("requests_per_minute", "tokens_per_minute", "queued_jobs")] == [
        None, 100, 7,
    ]  # fmt: skip
    listed = (await admin.get("/v1/admin/limits", params={"project": "managed"})).json()
    assert [limit["id"] for limit in listed["data"]] == [created["id"]]
    page = (await admin.get("/v1/admin/limits", params={"limit": 1, "after": created["id"]})).json()
    assert all(int(limit["id"][6:]) < int(created["id"][6:]) for limit in page["data"])
    for body, param in (
        ({"queued_jobs": None, "tokens_per_minute": None}, "requests_per_minute"),
        ({"mode": "soft"}, "queued_jobs"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"project": "other"}, "project"),
    ):
        refused = await admin.patch(path, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
    assert (await admin.delete(path)).json() == {"id": created["id"], "object": "limit", "deleted": True}
    for method in ("GET", "PATCH", "DELETE"):
        missing = await admin.request(method, path, json={} if method == "PATCH" else None)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "limit_not_found")
    entries = await _audited(stack, created["id"])
    assert [entry["action"] for entry in entries] == ["limit.create", "limit.change", "limit.delete"]
    assert entries[1]["before"] == {"requests_per_minute": 5, "tokens_per_minute": None}
    assert entries[1]["after"] == {"requests_per_minute": None, "tokens_per_minute": 100}
    assert entries[2]["after"] is None


async def _audited(stack: Stack, object_id: str) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(stack.environment["DATABASE_URL"].replace("+asyncpg", ""))
    try:
        rows = await connection.fetch(
            "SELECT action, before, after FROM audit_log WHERE object_id = $1 ORDER BY id", object_id
        )
    finally:
        await connection.close()
    return [
        {name: json.loads(value) if value and name != "action" else value for name, value in row.items()}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "requests_per_minute"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"requests_per_minute": 2**31}, "requests_per_minute"),
        ({"tokens_per_minute": 1.5}, "tokens_per_minute"),
        ({"requests_per_minute": 1, "model": "unknown"}, "model"),
        ({"requests_per_minute": 1, "project": "unknown"}, "project"),
        ({"requests_per_minute": 1, "project": "e2e", "key_id": "key_999999"}, "key_id"),
        ({"requests_per_minute": 1, "key_id": "web"}, "key_id"),
        ({"requests_per_minute": 1, "project": "operations", "key_id": "key_1"}, "key_id"),
        ({"requests_per_minute": 1, "end_user": ""}, "end_user"),
        ({"requests_per_minute": 1, "mode": "firm"}, "mode"),
        ({"open_streams": 1, "mode": "soft"}, "open_streams"),
        ({"requests_per_hour": 1}, "requests_per_minute"),
    ],
)
async def test_invalid_limits(admin: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    response = await admin.post("/v1/admin/limits", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


async def test_other_keys_are_refused(stack: Stack) -> None:
    async with bearer(stack, create_key(stack, "plain")) as client:
        for method, path in (
            ("GET", "/v1/admin/limits"),
            ("POST", "/v1/admin/limits"),
            ("GET", "/v1/admin/limits/limit_1"),
            ("PATCH", "/v1/admin/limits/limit_1"),
            ("DELETE", "/v1/admin/limits/limit_1"),
        ):
            body = {"requests_per_minute": 1} if method in ("POST", "PATCH") else None
            assert (await client.request(method, path, json=body)).status_code == 403
