"""All jobs that match a search are counted, cancelled and replayed, page by page, over HTTP and by `headrace`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_projects import bearer, create_key
from tests.support.command_line import run
from tests.support.stack import Stack


@pytest.fixture
async def client(sim_stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(sim_stack, create_key(sim_stack, "matching", "--project", "matching")) as client:
        yield client


@pytest.fixture
def tag() -> str:
    """A value of metadata that only the jobs of one test have."""
    return secrets.token_hex(4)


async def submit(client: httpx.AsyncClient, tag: str, count: int, model: str = "orphan") -> list[str]:
    """Submit jobs, which wait for ever or end at once; returns their ids, newest first."""
    wait = "wait=20" if model != "orphan" else ""
    body = {"model": model, "prompt": "x", "max_tokens": 2, "metadata": {"tag": tag}}
    ids = []
    for _ in range(count):
        response = await client.post("/v1/jobs", json=body, headers={"Prefer": wait})
        assert response.status_code in (200, 202), response.text
        ids.append(response.json()["id"])
    return ids[::-1]


async def count(client: httpx.AsyncClient, action: str, **params: Any) -> dict[str, Any]:
    response = await client.get("/v1/jobs/count", params={"action": action, **params})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def statuses(client: httpx.AsyncClient, ids: list[str]) -> set[str]:
    found = await asyncio.gather(*(client.get(f"/v1/jobs/{job}") for job in ids))
    return {response.json()["status"] for response in found}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/count"),
        ("POST", "/v1/jobs/cancel"),
        ("POST", "/v1/jobs/replay"),
        ("GET", "/v1/requests"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/usage/statement"),
        ("GET", "/v1/quality"),
        ("DELETE", "/v1/cache"),
        ("DELETE", "/v1/users/ann/data"),
    ],
)
async def test_a_misspelt_condition_is_refused(client: httpx.AsyncClient, tag: str, method: str, path: str) -> None:
    """The request would be about more than its client means: here, about jobs of each status."""
    (open_job,) = await submit(client, tag, 1)
    params = {"statsu": "failed", "model": "orphan", **({"action": "cancel"} if path.endswith("count") else {})}
    response = await client.request(method, path, params=params, headers={"Idempotency-Key": tag})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == "statsu"
    assert "there is no such query parameter; there are: " in error["message"]
    assert await statuses(client, [open_job]) == {"queued"}


async def test_open_jobs_are_cancelled_page_by_page(client: httpx.AsyncClient, tag: str) -> None:
    ids = await submit(client, tag, 3)
    (ended,) = await submit(client, tag, 1, "sim")
    (other,) = await submit(client, f"{tag}x", 1)
    found = await count(client, "cancel", metadata=f"tag={tag}")
    assert (found["count"], found["complete"]) == (3, True)
    (later,) = await submit(client, tag, 1)
    params = {"metadata": f"tag={tag}", "created_before": found["created_before"], "limit": 2}
    first = (await client.post("/v1/jobs/cancel", params=params)).json()
    assert [(job["id"], job["status"], job["error"]) for job in first["data"]] == [
        (job, "cancelled", None) for job in ids[:2]
    ]
    assert (first["has_more"], first["last_id"]) == (True, ids[1])
    second = (await client.post("/v1/jobs/cancel", params={**params, "after": first["last_id"]})).json()
    assert ([job["id"] for job in second["data"]], second["has_more"]) == ([ids[2]], False)
    assert await statuses(client, ids) == {"cancelled"}
    assert await statuses(client, [other, later]) == {"queued"}, "these do not match"
    assert (await client.get(f"/v1/jobs/{ended}")).json()["status"] in ("completed", "incomplete")
    assert (await client.post("/v1/jobs/cancel", params=params)).json()["data"] == []
    await client.post("/v1/jobs/cancel", params={"status": "queued"})
    assert await statuses(client, [other, later]) == {"cancelled"}


async def test_a_page_of_replays_that_is_repeated_submits_nothing(client: httpx.AsyncClient, tag: str) -> None:
    ids = await submit(client, tag, 2, "sim")
    found = await count(client, "replay", metadata=f"tag={tag}")
    assert found["count"] == 2
    assert (await count(client, "replay", metadata=f"tag={tag}", status="failed"))["count"] == 0
    params = {"metadata": f"tag={tag}", "created_before": found["created_before"]}
    refused = await client.post("/v1/jobs/replay", params=params)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")
    headers = {"Idempotency-Key": tag}
    first, again = [(await client.post("/v1/jobs/replay", params=params, headers=headers)).json() for _ in range(2)]
    assert [job["id"] for job in first["data"]] == ids
    new = [job["replayed_as"] for job in first["data"]]
    assert [job["replayed_as"] for job in again["data"]] == new
    replay = (await client.get(f"/v1/jobs/{new[0]}")).json()
    assert replay["metadata"] == {"tag": tag, "replay_of": ids[0]}
    another = (await client.post("/v1/jobs/replay", params=params, headers={"Idempotency-Key": f"{tag}2"})).json()
    assert not {job["replayed_as"] for job in another["data"]} & set(new)


@pytest.mark.parametrize("path", ["cancel", "replay"])
async def test_a_condition_is_required(client: httpx.AsyncClient, path: str) -> None:
    for params in ({}, {"created_before": "2030-01-01T00:00:00Z"}):
        response = await client.post(f"/v1/jobs/{path}", params=params, headers={"Idempotency-Key": "x"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "status")
    response = await client.post(f"/v1/jobs/{path}", params={"model": "sim", "project": "*"})
    assert response.status_code == (403 if path == "cancel" else 400)


async def test_jobs_of_other_projects_are_not_touched(sim_stack: Stack, client: httpx.AsyncClient, tag: str) -> None:
    ids = await submit(client, tag, 1)
    operator = create_key(sim_stack, "matcher", "--scope", "admin", "--scope", "inference")
    params = {"metadata": f"tag={tag}"}
    async with bearer(sim_stack, create_key(sim_stack, "stranger to them")) as stranger:
        assert (await stranger.post("/v1/jobs/cancel", params=params)).json()["data"] == []
    assert await statuses(client, ids) == {"queued"}
    async with bearer(sim_stack, operator) as admin:
        assert (await admin.post("/v1/jobs/cancel", params=params)).json()["data"] == []
        done = (await admin.post("/v1/jobs/cancel", params={**params, "project": "matching"})).json()
    assert [job["status"] for job in done["data"]] == ["cancelled"]


async def test_the_command_line(sim_stack: Stack, client: httpx.AsyncClient, tag: str) -> None:
    ids = await submit(client, tag, 3)
    key = client.headers["authorization"].removeprefix("Bearer ")
    arguments = ("jobs", "--metadata", f"tag={tag}", "--cancel")
    asked = await asyncio.to_thread(run, sim_stack.url, *arguments, key=key)
    assert (asked.exit_code, await statuses(client, ids)) == (2, {"queued"}), "there is no terminal to ask at"
    done = await asyncio.to_thread(run, sim_stack.url, *arguments, "--yes", key=key)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (0, "3 of 3 cancelled.")
    assert await statuses(client, ids) == {"cancelled"}
