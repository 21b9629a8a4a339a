"""Invalid input that only a real engine can detect is rejected or ends at its deadline; the engine survives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_vllm import requests_in_engines
from tests.support.stack import Stack
from tests.support.waiting import eventually

CONTEXT = 1024
HELLO = [{"role": "user", "content": "Say something."}]
# Each object must contain another one, so the schema has no finite instance.
ENDLESS: dict[str, Any] = {
    "$defs": {
        "a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
    },
    "$ref": "#/$defs/a",
}


def structured(schema: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "model": "smollm2",
        "max_tokens": 900,
        "messages": HELLO,
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
        **changes,
    }


@pytest.fixture(autouse=True)
async def _engine_survives(vllm_stack: Stack, vllm: httpx.AsyncClient) -> AsyncIterator[None]:
    """After each test, the same worker process answers and its engine has no other requests."""
    (worker,) = [process for name, process in vllm_stack.processes.items() if name.startswith("worker")]
    engine = (await vllm.get("/readyz")).json()
    yield

    async def idle() -> bool:
        return await requests_in_engines(vllm_stack) == 0

    await eventually(idle, "the engine has no requests")
    answer = await vllm.post("/v1/messages", json={"model": "smollm2", "max_tokens": 3, "messages": HELLO})
    assert answer.status_code == 200, answer.text
    assert worker.poll() is None
    assert (await vllm.get("/readyz")).json() == engine


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/$defs/missing"},
        {"type": "string", "pattern": "(unclosed"},
        {"type": "object", "properties": 7},
    ],
    ids=["an unknown type", "an unresolved reference", "an invalid pattern", "properties that are a number"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_that_cannot_be_compiled_is_rejected(
    vllm: httpx.AsyncClient, schema: dict[str, Any], stream: bool
) -> None:
    response = await vllm.post("/v1/messages", json=structured(schema, stream=stream))
    if stream:
        assert response.status_code == 200
        assert "event: error" in response.text
        assert "invalid_request_error" in response.text
    else:
        assert response.status_code == 400, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_an_endless_answer_is_cancelled_at_its_deadline(vllm: httpx.AsyncClient) -> None:
    response = await vllm.post("/v1/messages", json=structured(ENDLESS), headers={"Cancel-After": "3s"})
    assert response.status_code == 504, response.text
    assert response.json()["error"]["type"] == "timeout_error"
    job = (await vllm.get(f"/v1/jobs/{response.headers['x-headrace-job-id']}")).json()
    assert job["status"] == "cancelled"
    assert job["output_text"].lstrip().startswith("{")
    assert '"a"' in job["output_text"]


async def test_one_token_more_than_the_context_is_rejected(vllm: httpx.AsyncClient) -> None:
    async def counted(words: int) -> tuple[int, dict[str, Any]]:
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "a" + " mill" * words}]}
        answer = await vllm.post("/v1/messages/count_tokens", json=body)
        return answer.json()["input_tokens"], body

    template, _ = await counted(0)
    tokens, fits = await counted(CONTEXT - 1 - template)
    assert tokens == CONTEXT - 1
    answer = await vllm.post("/v1/messages", json={**fits, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == CONTEXT - 1
    tokens, too_long = await counted(CONTEXT - template)
    assert tokens == CONTEXT
    rejected = await vllm.post("/v1/messages", json={**too_long, "max_tokens": 1})
    assert rejected.status_code == 400, rejected.text
    assert f"context is {CONTEXT} tokens" in rejected.json()["error"]["message"]
