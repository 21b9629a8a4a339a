"""Projects own what their keys create: a rotated key can access the old key's work, and other projects cannot."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack


def create_key(stack: Stack, *arguments: str) -> str:
    return stack.command("api.keys", "create", *arguments).stdout.strip()


def key_id(stack: Stack, key: str) -> str:
    """The id of a generated key, as an operator finds it."""
    prefix = "_".join(key.split("_")[:2])
    (found,) = [line.split()[0] for line in stack.command("api.keys", "list").stdout.splitlines() if prefix in line]
    return found


def bearer(stack: Stack, key: str) -> httpx.AsyncClient:
    return stack.client(headers={"Authorization": f"Bearer {key}"})


async def create_everything(client: httpx.AsyncClient) -> dict[str, str]:
    """One job, response, file and batch; returns the path of each."""
    job = await client.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 2, "user": "ann"})
    assert job.status_code == 202
    response = await client.post("/v1/responses", json={"model": "sim", "input": "x", "background": True})
    assert response.status_code == 200
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "sim", "prompt": "x"}}
    form = {"purpose": (None, "batch"), "file": ("in.jsonl", json.dumps(line))}
    file = await client.post("/v1/files", files=form)
    assert file.status_code == 200
    batch = await client.post(
        "/v1/batches",
        json={"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"},
    )
    assert batch.status_code == 200
    return {
        "jobs": f"/v1/jobs/{job.json()['id']}",
        "responses": f"/v1/responses/{response.json()['id']}",
        "files": f"/v1/files/{file.json()['id']}",
        "batches": f"/v1/batches/{batch.json()['id']}",
    }


async def test_a_rotated_key_can_access_the_old_keys_work(sim_stack: Stack) -> None:
    """The rotation of docs/operations.md: create a successor, move the clients, let the old key expire."""
    old = create_key(sim_stack, "web", "--project", "rotating")
    async with bearer(sim_stack, old) as client:
        paths = await create_everything(client)
        submit: dict[str, Any] = {
            "json": {"model": "sim", "prompt": "once", "max_tokens": 1},
            "headers": {"Idempotency-Key": "of the project"},
        }
        first = await client.post("/v1/jobs", **submit)
    new = sim_stack.command("api.keys", "rotate", key_id(sim_stack, old), "--overlap", "0s").stdout.strip()
    async with bearer(sim_stack, new) as client:
        for path in paths.values():
            assert (await client.get(path)).status_code in (200, 202), path
        listed = [(await client.get(f"/v1/{kind}")).json()["data"] for kind in ("jobs", "files", "batches")]
        assert [
            paths[kind].rpartition("/")[2] in {item["id"] for item in items}
            for kind, items in zip(("jobs", "files", "batches"), listed, strict=True)
        ] == [True] * 3
        again = await client.post("/v1/jobs", **submit)
        assert again.json()["id"] == first.json()["id"]
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (await client.post(f"{paths['jobs']}/cancel")).status_code == 200
        assert (await client.get(paths["jobs"])).json()["user"] == "ann"


async def test_another_project_gets_404(sim_stack: Stack) -> None:
    async with bearer(sim_stack, create_key(sim_stack, "web", "--project", "mine")) as client:
        paths = await create_everything(client)
    async with bearer(sim_stack, create_key(sim_stack, "web", "--project", "theirs")) as client:
        for path in paths.values():
            assert (await client.get(path)).status_code == 404, path
            assert (await client.post(f"{path}/cancel")).status_code in (404, 405), path
            assert (await client.delete(path)).status_code in (404, 405), path
        for kind in ("jobs", "files", "batches"):
            assert (await client.get(f"/v1/{kind}")).json()["data"] == []
        body = {"model": "sim", "input": "y", "previous_response_id": paths["responses"].rpartition("/")[2]}
        rejected = await client.post("/v1/responses", json=body)
        assert rejected.json()["error"]["code"] == "previous_response_not_found"
        batch = {
            "input_file_id": paths["files"].rpartition("/")[2],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        assert (await client.post("/v1/batches", json=batch)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/models"), ("GET", "/v1/files")]
)
async def test_a_key_without_the_inference_scope_is_rejected(sim_stack: Stack, method: str, path: str) -> None:
    key = create_key(sim_stack, "operator", "--project", "operators", "--scope", "admin")
    async with bearer(sim_stack, key) as client:
        rejected = await client.request(method, path, json={"model": "sim", "prompt": "x"})
        assert rejected.status_code == 403
        error = rejected.json()["error"]
        assert error["code"] == "insufficient_permissions"
        assert "`inference` scope" in error["message"]
        anthropic = await client.post("/v1/messages", json={"model": "sim", "messages": [], "max_tokens": 1})
        assert anthropic.status_code == 403
        assert anthropic.json()["error"]["type"] == "permission_error"


async def test_the_end_user_is_stored_for_each_dialect(sim_stack: Stack) -> None:
    async with bearer(sim_stack, create_key(sim_stack, "users")) as client:
        chat = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        requests: dict[str, dict[str, Any]] = {
            "/v1/jobs": {"model": "sim", "prompt": "x", "max_tokens": 1, "user": "native"},
            "/v1/chat/completions": chat | {"user": "chat"},
            "/v1/completions": {"model": "sim", "prompt": "x", "max_tokens": 1, "user": "text"},
            "/v1/messages": chat | {"metadata": {"user_id": "anthropic"}},
            "/v1/responses": {"model": "sim", "input": "x", "user": "ignored", "safety_identifier": "responses"},
        }
        identified = {"user": "ignored", "safety_identifier": "identified"}
        for path, body in requests.items():
            answer = await client.post(path, json=body)
            assert answer.status_code in (200, 202), answer.text
        for path in ("/v1/jobs", "/v1/chat/completions", "/v1/completions"):
            answer = await client.post(path, json=requests[path] | identified)
            assert answer.status_code in (200, 202), answer.text
            assert "x-headrace-ignored" not in answer.headers
        users = [job["user"] for job in (await client.get("/v1/jobs")).json()["data"]]
    assert users == [*["identified"] * 3, "responses", "anthropic", "text", "chat", "native"]
