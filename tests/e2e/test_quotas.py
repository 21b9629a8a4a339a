"""Quotas of a project, priorities of a key, and what revoking a key ends: with real processes and servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end, wait_until_running
from tests.e2e.test_projects import bearer, create_key, key_id
from tests.support.database import drop_database
from tests.support.metrics import samples
from tests.support.stack import Stack
from tests.support.waiting import eventually

QUEUED, URGENT, STREAMS, REQUEST_BYTES, OPEN_BYTES = 20, 5, 3, 100_000, 50_000
CACHE_S = 1
# Dollars per million tokens.
INPUT_PRICE, OUTPUT_PRICE = 2, 10
CHAT = {"model": "one", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5_000}


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One API process with low quotas; `one` has a slow worker with one slot, `orphan` has none."""
    models: list[dict[str, object]] = [
        {
            "name": "one", "engine": "simulated", "slots": 1, "options": {"ttft_ms": 5, "itl_ms": 20},
            "price": {"input": INPUT_PRICE, "output": OUTPUT_PRICE},
        },
        {"name": "orphan", "engine": "simulated"},
    ]  # fmt: skip
    stack = make_stack(
        servers,
        tmp_path_factory,
        "quotas",
        models,
        HEADRACE_PROJECT_QUEUED_JOBS=QUEUED,
        HEADRACE_PROJECT_URGENT_JOBS=URGENT,
        HEADRACE_PROJECT_STREAMS=STREAMS,
        HEADRACE_PROJECT_REQUEST_BYTES=REQUEST_BYTES,
        HEADRACE_PROJECT_OPEN_BYTES=OPEN_BYTES,
        HEADRACE_KEY_CACHE_S=CACHE_S,
    )
    try:
        stack.start_api()
        stack.start_worker("one")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_quotas")


def job(**fields: Any) -> dict[str, Any]:
    return {"model": "orphan", "prompt": "the mill", **fields}


def assert_over_quota(response: httpx.Response, *words: str) -> None:
    assert response.status_code == 429, response.text
    assert int(response.headers["retry-after"]) > 0
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exceeded")
    for word in words:
        assert word in error["message"]


async def test_one_project_cannot_fill_the_queue(stack: Stack) -> None:
    """150 concurrent submits by two keys of a project; another project is served as usual."""
    first, second = (create_key(stack, name, "--project", "greedy") for name in ("a", "b"))
    async with bearer(stack, first) as one, bearer(stack, second) as two:
        responses = await asyncio.gather(*((one, two)[n % 2].post("/v1/jobs", json=job()) for n in range(150)))
        accepted = [response.json()["id"] for response in responses if response.status_code == 202]
        assert len(accepted) == QUEUED
        for response in responses:
            if response.status_code != 202:
                assert_over_quota(response, str(QUEUED), "HEADRACE_PROJECT_QUEUED_JOBS")
        for path, body in (
            ("/v1/completions", {"model": "orphan", "prompt": "x"}),
            ("/v1/responses", {"model": "orphan", "input": "x"}),
        ):
            assert_over_quota(await one.post(path, json=body))
        anthropic = await one.post("/v1/messages", json=CHAT | {"model": "orphan", "max_tokens": 9})
        assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (429, "rate_limit_error")

        async with bearer(stack, create_key(stack, "modest")) as other:
            answer = await other.post("/v1/jobs", json=job())
            assert (answer.status_code, answer.json()["queue_position"]) == (202, QUEUED)

        # A quota is free again at once.
        await two.post(f"/v1/jobs/{accepted[0]}/cancel")
        assert (await one.post("/v1/jobs", json=job())).status_code == 202
        assert_over_quota(await one.post("/v1/jobs", json=job()))
    refused = (await samples(stack, "api"))["headrace_quota_rejections_total", "queued_jobs"]
    assert refused >= 150 - QUEUED + 4


async def test_a_retry_receives_its_job_although_the_quota_is_used_up(stack: Stack) -> None:
    """The response to the submit that used up the quota may have been lost."""
    key = {"Idempotency-Key": "last"}
    responses = {"model": "orphan", "input": "x", "background": True}
    async with bearer(stack, create_key(stack, "retrying")) as client:
        for _ in range(QUEUED - 2):
            assert (await client.post("/v1/jobs", json=job())).status_code == 202
        response = await client.post("/v1/responses", json=responses, headers={"Idempotency-Key": "response"})
        last = await client.post("/v1/jobs", json=job(), headers=key)
        assert_over_quota(await client.post("/v1/jobs", json=job(), headers={"Idempotency-Key": "other"}))

        retried = await client.post("/v1/jobs", json=job(), headers=key)
        assert (retried.status_code, retried.json()["id"]) == (202, last.json()["id"])
        assert retried.headers["idempotent-replayed"] == "true"
        again = await client.post("/v1/responses", json=responses, headers={"Idempotency-Key": "response"})
        assert (again.status_code, again.json()["id"]) == (200, response.json()["id"])
        assert (await client.post("/v1/jobs", json=job(prompt="y"), headers=key)).status_code == 422
        async with bearer(stack, create_key(stack, "stranger")) as other:
            foreign = await other.post("/v1/jobs", json=job(), headers=key)
            assert foreign.json()["id"] != last.json()["id"]


async def test_urgent_jobs_must_be_granted_and_are_few(stack: Stack) -> None:
    async with bearer(stack, create_key(stack, "ordinary")) as client:
        refused = await client.post("/v1/jobs", json=job(priority=0))
        assert refused.status_code == 403
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == ("priority", "priority_not_allowed")
        assert "from 3 to 9" in error["message"]
        assert (await client.post("/v1/jobs", json=job(priority=3))).status_code == 202
        chat = await client.post("/v1/chat/completions", json=CHAT | {"priority": 2})
        assert chat.status_code == 403
    async with bearer(stack, create_key(stack, "urgent", "--priority-floor", "0")) as client:
        for priority in (0, 1, 2, 0, 1):
            assert (await client.post("/v1/jobs", json=job(priority=priority))).status_code == 202
        assert_over_quota(await client.post("/v1/jobs", json=job(priority=2)), "HEADRACE_PROJECT_URGENT_JOBS")
        assert (await client.post("/v1/jobs", json=job(priority=3))).status_code == 202


async def test_large_requests_are_limited_together(stack: Stack) -> None:
    async with bearer(stack, create_key(stack, "large")) as client:
        large = job(prompt="x" * 30_000)
        for _ in range(3):
            assert (await client.post("/v1/jobs", json=large)).status_code == 202
        assert_over_quota(await client.post("/v1/jobs", json=large), "HEADRACE_PROJECT_REQUEST_BYTES")
        assert (await client.post("/v1/jobs", json=job())).status_code == 202


async def test_the_bodies_of_open_requests_are_limited(stack: Stack) -> None:
    """They are in the memory of the API process until their answers, which may take as long as the queue."""
    large = {"model": "orphan", "prompt": "x", "ignored": "x" * (OPEN_BYTES - 1000)}
    async with bearer(stack, create_key(stack, "bodies")) as client:

        async def job_ids() -> list[str]:
            return [item["id"] for item in (await client.get("/v1/jobs")).json()["data"]]

        waiting = asyncio.create_task(client.post("/v1/completions", json=large))
        await eventually(job_ids, "the first request waits for its job")
        for path, body in (
            ("/v1/completions", large),
            ("/v1/responses", {"model": "orphan", "input": "x" * 2000}),
            ("/v1/jobs", job(prompt="x" * 2000)),
        ):
            assert_over_quota(await client.post(path, json=body), str(OPEN_BYTES), "HEADRACE_PROJECT_OPEN_BYTES")
        assert (await client.post("/v1/jobs", json=job())).status_code == 202, "a small one"
        async with bearer(stack, create_key(stack, "other-bodies")) as other:
            assert (await other.post("/v1/jobs", json={**large, "ignored": "x" * OPEN_BYTES})).status_code == 202

        first_id = (await job_ids())[-1]
        await client.post(f"/v1/jobs/{first_id}/cancel")
        assert (await waiting).status_code == 409
        assert (await client.post("/v1/jobs", json=large)).status_code == 202
    assert (await samples(stack, "api"))["headrace_quota_rejections_total", "open_bytes"] >= 3


async def test_a_continued_conversation_counts_as_part_of_an_open_request(stack: Stack) -> None:
    async with bearer(stack, create_key(stack, "continued")) as client:
        first = {"model": "one", "input": "x" * 30_000, "max_output_tokens": 1}
        previous = (await client.post("/v1/responses", json=first)).json()["id"]
        next_turn = {"model": "orphan", "input": "x", "previous_response_id": previous}
        waiting = asyncio.create_task(client.post("/v1/responses", json=next_turn))

        async def waits() -> list[dict[str, Any]]:
            page = await client.get("/v1/jobs", params={"status": "queued"})
            return list(page.json()["data"])

        (queued,) = await eventually(waits, "the second turn is queued")
        assert_over_quota(await client.post("/v1/responses", json=next_turn), "HEADRACE_PROJECT_OPEN_BYTES")
        await client.post(f"/v1/jobs/{queued['id']}/cancel")
        assert (await waiting).status_code == 409


async def test_batches_have_their_own_limit(stack: Stack) -> None:
    async with bearer(stack, create_key(stack, "bulk")) as client:
        lines = [
            json.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": job()})
            for n in range(QUEUED + 5)
        ]
        form = {"purpose": (None, "batch"), "file": ("in.jsonl", "\n".join(lines))}
        file = (await client.post("/v1/files", files=form)).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = (await client.post("/v1/batches", json=body)).json()

        async def all_queued() -> bool:
            page = await client.get("/v1/jobs", params={"status": "queued", "limit": 100})
            return len(page.json()["data"]) == QUEUED + 5

        await eventually(all_queued, "all lines are queued")
        assert (await client.post("/v1/jobs", json=job())).status_code == 202
        await client.post(f"/v1/batches/{batch['id']}/cancel")


async def test_open_streams_are_limited(stack: Stack) -> None:
    async with bearer(stack, create_key(stack, "streams")) as client:
        job_id = (await client.post("/v1/jobs", json=job())).json()["id"]
        path = f"/v1/jobs/{job_id}/stream"
        requests = [client.build_request("GET", path) for _ in range(STREAMS)]
        streams = [await client.send(request, stream=True) for request in requests]
        assert [stream.status_code for stream in streams] == [200] * STREAMS
        assert_over_quota(await client.get(path), str(STREAMS), "HEADRACE_PROJECT_STREAMS")
        before = len((await client.get("/v1/jobs")).json()["data"])
        assert_over_quota(await client.post("/v1/chat/completions", json=CHAT | {"stream": True}))
        assert len((await client.get("/v1/jobs")).json()["data"]) == before, "no job was submitted"
        await streams[0].aclose()

        async def opens() -> bool:
            async with client.stream("GET", path) as stream:
                return stream.status_code == 200

        await eventually(opens, "a stream was closed, so another opens")
        for stream in streams:
            await stream.aclose()


async def read_to_break(response: httpx.Response) -> str:
    """Read a stream; return how it ended."""
    try:
        async for _ in response.aiter_bytes():
            pass
    except httpx.HTTPError as error:
        return type(error).__name__
    return "complete"


async def test_revoking_a_key_closes_its_streams_and_its_jobs_go_on(stack: Stack) -> None:
    key, other = (create_key(stack, name, "--project", "revoked") for name in ("old", "new"))
    async with bearer(stack, key) as client, bearer(stack, other) as survivor:
        chat = await client.send(
            client.build_request("POST", "/v1/chat/completions", json=CHAT | {"stream": True, "max_tokens": 200}),
            stream=True,
        )
        running_id = chat.headers["x-headrace-job-id"]
        queued = (await survivor.post("/v1/jobs", json=job())).json()["id"]
        native = await client.send(client.build_request("GET", f"/v1/jobs/{queued}/stream"), stream=True)
        kept = await survivor.send(survivor.build_request("GET", f"/v1/jobs/{queued}/stream"), stream=True)
        waits = asyncio.create_task(client.post("/v1/completions", json={"model": "orphan", "prompt": "x"}))
        await wait_until_running(survivor, running_id)

        stack.command("api.keys", "revoke", key_id(stack, key))
        reads = [asyncio.create_task(read_to_break(response)) for response in (chat, native)]
        async with asyncio.timeout(CACHE_S + 5):
            assert await asyncio.gather(*reads) == ["RemoteProtocolError"] * 2
            with pytest.raises(httpx.HTTPError):
                await waits
        assert (await client.get("/v1/jobs")).status_code == 401
        assert (await survivor.get(f"/v1/jobs/{running_id}")).json()["status"] == "in_progress"
        assert not kept.is_closed
        done = await wait_for_end(survivor, running_id)
        assert done["usage"]["completion_tokens"] == 200, "the client did not abandon its job"
        await kept.aclose()
        for response in (chat, native):
            await response.aclose()
    assert "Traceback" not in (stack.folder / "api.log").read_text()


async def test_a_key_is_revoked_while_its_job_streams(stack: Stack) -> None:
    """Its stream is cut, and its job remains the project's. When that ends, it is charged once, to the revoked key, and
    gives back what it has reserved in budgets and taken from limits."""
    key, other = (create_key(stack, name, "--project", "mid-stream") for name in ("old", "new"))
    operator = create_key(stack, "bursar", "--project", "operations", "--scope", "admin")
    number = key_id(stack, key)
    async with bearer(stack, key) as client, bearer(stack, other) as survivor, bearer(stack, operator) as admin:
        budget, limit = [
            (await admin.post(f"/v1/admin/{path}", json={"project": "mid-stream", **fields})).json()["id"]
            for path, fields in (
                ("budgets", {"period": "total", "limit_usd": 1}),
                ("limits", {"concurrent_jobs": 1, "tokens_per_minute": 100_000}),
            )
        ]
        stream = await client.send(
            client.build_request("POST", "/v1/chat/completions", json=CHAT | {"stream": True}), stream=True
        )
        job_id = stream.headers["x-headrace-job-id"]
        await wait_until_running(survivor, job_id)
        reserved = (await admin.get(f"/v1/admin/budgets/{budget}")).json()
        assert reserved["spend_usd"] == 0 < reserved["reserved_usd"]
        assert_over_quota(await survivor.post("/v1/jobs", json=job(model="one")), limit)

        stack.command("api.keys", "revoke", number)
        async with asyncio.timeout(CACHE_S + 5):
            assert await read_to_break(stream) == "RemoteProtocolError"
        await stream.aclose()
        assert (await survivor.get(f"/v1/jobs/{job_id}")).json()["status"] == "in_progress"
        await survivor.post(f"/v1/jobs/{job_id}/cancel")
        ended = await wait_for_end(survivor, job_id)
        used = ended["usage"]
        assert (ended["status"], used["completion_tokens"] > 0) == ("cancelled", True)

        (entry,) = await fetch(stack, "SELECT * FROM usage_events WHERE job_id = $1", job_id)
        charge = used["prompt_tokens"] * INPUT_PRICE + used["completion_tokens"] * OUTPUT_PRICE
        assert (f"key_{entry['key_id']}", entry["final"], entry["charge"] * 1_000_000) == (number, True, charge)
        settled = (await admin.get(f"/v1/admin/budgets/{budget}")).json()
        assert (settled["reserved_usd"], settled["spend_usd"]) == (0, pytest.approx(charge / 1_000_000))

        async def is_given_back() -> bool:
            left = (await admin.get(f"/v1/admin/limits/{limit}")).json()["left"]["tokens"]["remaining"]
            return bool(left == 100_000 - used["prompt_tokens"] - used["completion_tokens"])

        await eventually(is_given_back, "the limit counts the tokens that were used")
        assert (await survivor.post("/v1/jobs", json=job(model="one", max_tokens=1))).status_code == 202


async def test_the_jobs_of_a_revoked_key_are_cancelled_by_setting(stack: Stack) -> None:
    key, other = (create_key(stack, name, "--project", "cancelled") for name in ("old", "new"))
    with stack.second_api(HEADRACE_REVOKED_JOBS="cancel") as url:
        async with bearer(stack, key) as client, bearer(stack, other) as survivor:
            running, queued = [
                (await client.post("/v1/jobs", json=job(model=model, max_tokens=5_000))).json()["id"]
                for model in ("one", "orphan")
            ]
            kept = (await survivor.post("/v1/jobs", json=job())).json()["id"]
            line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": job()}
            form = {"purpose": (None, "batch"), "file": ("in.jsonl", json.dumps(line))}
            file = (await client.post("/v1/files", files=form)).json()
            body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
            batch = (await client.post("/v1/batches", json=body)).json()
            unreadable = (await client.post("/v1/jobs", json=job())).json()["id"]
            await wait_until_running(survivor, running)
            await damage(stack, unreadable)
            stack.command("api.keys", "revoke", key_id(stack, key))
            for job_id in (running, queued):
                assert (await wait_for_end(survivor, job_id))["status"] == "cancelled"

            async def batch_ends() -> bool:
                return bool((await survivor.get(f"/v1/batches/{batch['id']}")).json()["status"] == "cancelled")

            await eventually(batch_ends, "the batch is cancelled")
            assert (await survivor.get(f"{url}/v1/jobs/{kept}")).json()["status"] == "queued"


async def damage(stack: Stack, job_id: str) -> None:
    """Make a job's row unreadable."""
    await fetch(stack, "UPDATE jobs SET attempts = '[{}]' WHERE id = $1", job_id)


async def fetch(stack: Stack, statement: str, *parameters: Any) -> Any:
    """Run a statement; returns its rows."""
    connection = await asyncpg.connect(stack.environment["DATABASE_URL"].replace("+asyncpg", ""))
    try:
        return await connection.fetch(statement, *parameters)
    finally:
        await connection.close()


async def test_the_position_told_at_submit_counts_urgent_jobs_of_other_keys(stack: Stack) -> None:
    """Also those that were submitted a moment ago, by another API dialect or at another priority."""
    async with (
        bearer(stack, create_key(stack, "early")) as early,
        bearer(stack, create_key(stack, "hasty", "--priority-floor", "0")) as hasty,
    ):
        before = (await early.post("/v1/jobs", json=job(priority=5))).json()["queue_position"]
        for _ in range(URGENT):
            assert (await hasty.post("/v1/jobs", json=job(priority=0))).status_code == 202
        background = {"model": "orphan", "input": "x", "background": True}
        for _ in range(3):
            assert (await hasty.post("/v1/responses", json=background)).status_code == 200
        after = (await early.post("/v1/jobs", json=job(priority=5))).json()["queue_position"]
        assert after == before + 1 + URGENT + 3
