"""The limits of tokens of a key, in every API, and soon after they were changed."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.test_projects import bearer, create_key, key_id
from tests.support.stack import Stack
from tests.support.waiting import eventually

ASK = [{"role": "user", "content": "Name a river."}]
JOBS, CHAT, TEXT = "/v1/jobs", "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
CASES: list[tuple[str, dict[str, Any], str]] = [
    (JOBS, {"messages": ASK}, "max_tokens"),
    (CHAT, {"messages": ASK}, "max_tokens"),
    (CHAT, {"messages": ASK}, "max_completion_tokens"),
    (TEXT, {"prompt": "A river"}, "max_tokens"),
    (RESPONSES, {"input": "Name a river."}, "max_output_tokens"),
    (MESSAGES, {"messages": ASK}, "max_tokens"),
]


def output_tokens(usage: dict[str, Any]) -> int:
    return int(usage["completion_tokens"] if "completion_tokens" in usage else usage["output_tokens"])


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"Prefer": "wait=30"} if path == JOBS else {}
    return await client.post(path, json={"model": "sim", **body}, headers=headers)


async def test_limits_of_a_key(sim_stack: Stack) -> None:
    key = create_key(sim_stack, "few tokens", "--max-output-tokens", "3", "--on-exceed", "clamp")
    async with bearer(sim_stack, key) as client:
        for path, body, param in CASES:
            clamped = await post(client, path, {**body, param: 50})
            assert (clamped.status_code, clamped.headers["x-headrace-max-tokens"]) == (200, "3"), clamped.text
            assert output_tokens(clamped.json()["usage"]) == 3
            within = await post(client, path, {**body, param: 2})
            assert (within.status_code, "x-headrace-max-tokens" in within.headers) == (200, False)
            if path != JOBS:
                streamed = await post(client, path, {**body, param: 50, "stream": True})
                assert (streamed.status_code, streamed.headers["x-headrace-max-tokens"]) == (200, "3")
        job = (await post(client, JOBS, {"messages": ASK, "max_tokens": 50})).json()
        assert job["token_limits"]["requested_max_tokens"] == 50
        assert job["token_limits"]["max_tokens"] == 3
        unlimited = await post(client, CHAT, {"messages": ASK})
        assert (unlimited.headers["x-headrace-max-tokens"], output_tokens(unlimited.json()["usage"])) == ("3", 3)

        limits = ("--on-exceed", "reject", "--max-input-tokens", "20")
        assert sim_stack.command("api.keys", "set", key_id(sim_stack, key), *limits).returncode == 0

        async def refused() -> bool:
            return (await post(client, CHAT, {"messages": ASK, "max_tokens": 4})).status_code == 400

        await eventually(refused, "the new limits apply")
        for path, body, param in CASES:
            error = (await post(client, path, {**body, param: 4})).json()["error"]
            assert error["message"].startswith(f"{param}: this API key allows at most 3 output tokens; got 4.")
            assert error.get("param", param) == param
            content = next(iter(body))
            long = body[content] * 10 if isinstance(body[content], list) else f"{body[content]} " * 10
            error = (await post(client, path, {content: long, param: 2})).json()["error"]
            assert error["message"].startswith(f"{content}: this API key allows prompts of at most 20 tokens")
