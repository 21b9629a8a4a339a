"""Errors that only a worker finds keep type, code and parameter: in every dialect, streamed or not, and in batches."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.e2e.test_jobs import wait_for_end
from tests.support.sse import follow
from tests.support.waiting import eventually

# No instance is finite.
ENDLESS = {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "endless", "schema": ENDLESS}}
MESSAGES = [{"role": "user", "content": "the mill"}]
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "response_format": FORMAT}, "response_format"),
    ("/v1/chat/completions", {"messages": MESSAGES, "structured_outputs": {"regex": "a+"}}, "structured_outputs"),
    (
        "/v1/completions",
        {"prompt": "the mill", "structured_outputs": {"grammar": "root ::= a"}},
        "structured_outputs",
    ),
    (
        "/v1/responses",
        {"input": "the mill", "text": {"format": {"type": "json_schema", "name": "endless", "schema": ENDLESS}}},
        "text.format",
    ),
]


def frames(text: str) -> list[Any]:
    return [json.loads(block.partition("data: ")[2]) for block in text.split("\n\n")[:-1]]


@pytest.mark.parametrize(("path", "body", "param"), CASES)
async def test_openai(sim: httpx.AsyncClient, path: str, body: dict[str, Any], param: str) -> None:
    response = await sim.post(path, json={"model": "sim", **body})
    assert (response.status_code, response.headers["x-should-retry"]) == (400, "false")
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_request", param)
    last = frames((await sim.post(path, json={"model": "sim", **body, "stream": True})).text)[-1]
    if path != "/v1/responses":
        assert last == {"error": error}
        return
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {
        "code": "invalid_prompt",
        "type": "invalid_request",
        "param": param,
        "message": error["message"],
    }


async def test_anthropic(sim: httpx.AsyncClient) -> None:
    body = {
        "model": "sim",
        "max_tokens": 9,
        "messages": MESSAGES,
        "output_config": {"format": {"type": "json_schema", "schema": ENDLESS}},
    }
    response = await sim.post("/v1/messages", json=body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    last = frames((await sim.post("/v1/messages", json={**body, "stream": True})).text)[-1]
    assert last == response.json()


async def test_a_native_job(sim: httpx.AsyncClient) -> None:
    body = {"model": "sim", "messages": MESSAGES, "response_format": FORMAT}
    job = (await sim.post("/v1/jobs", json=body)).json()
    last = (await follow(sim, job["id"]))[-1]
    done = await wait_for_end(sim, job["id"])
    assert last.event == "job.failed"
    assert last.data["error"] == done["error"]
    assert (done["error"]["code"], done["error"]["param"]) == ("invalid_request", "structured_outputs")


@pytest.mark.parametrize(("path", "body", "param"), CASES)
async def test_a_batch(sim: httpx.AsyncClient, path: str, body: dict[str, Any], param: str) -> None:
    line = {"custom_id": "1", "method": "POST", "url": path, "body": {"model": "sim", **body}}
    file = await sim.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", json.dumps(line).encode())})
    created = await sim.post(
        "/v1/batches", json={"input_file_id": file.json()["id"], "endpoint": path, "completion_window": "24h"}
    )
    url = f"/v1/batches/{created.json()['id']}"

    async def ended() -> Any:
        batch = (await sim.get(url)).json()
        return batch if batch["status"] == "completed" else None

    batch = await eventually(ended, "the batch has ended", within_s=30)
    (result,) = (await sim.get(f"/v1/files/{batch['error_file_id']}/content")).text.splitlines()
    response = json.loads(result)["response"]
    error = response["body"]["error"]
    assert (response["status_code"], error["type"], error["param"]) == (400, "invalid_request_error", param)
