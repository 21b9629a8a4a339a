"""Bodies of hostile shape: very wide, very deep, very many items, or values that are not JSON.

Each API rejects them and names the field, if there is one, without an internal error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_bad_input import CHAT, COMPLETIONS, CONTEXT, JOBS, MESSAGES, SURROGATE, send
from tests.support.stack import Stack

ANTHROPIC = "/v1/messages"
POSTS = (JOBS, CHAT, COMPLETIONS, ANTHROPIC)
WIDE = {f"k{number}": 1 for number in range(5000)}


@pytest.fixture(scope="module", autouse=True)
def _no_unexpected_error(sim_stack: Stack) -> Iterator[None]:
    log = sim_stack.folder / "api.log"
    before = len(log.read_bytes())
    yield
    assert b"Traceback" not in log.read_bytes()[before:]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def body_for(path: str, **changes: Any) -> dict[str, Any]:
    given = {"prompt": "the mill"} if path == COMPLETIONS else {"messages": MESSAGES}
    return {"model": "sim", "max_tokens": 4, **given, **changes}


def error_of(response: httpx.Response, status: int) -> str:
    """The message of an error, in the format of any API."""
    assert response.status_code == status, response.text
    message: str = response.json()["error"]["message"]
    return message


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (WIDE, "An object has 500"),
        ({"messages": [WIDE]}, "An object has 5000 members; the maximum is 4096"),
        ({"metadata": WIDE}, "An object has 5000 members"),
        ({"tools": [{"x": [{"y": WIDE}]}]}, "An object has 5000 members"),
        ({"metadata": deep(150)}, "more than 100 levels deep"),
        ({"messages": [[[[deep(150)]]]]}, "more than 100 levels deep"),
    ],
    ids=["wide", "wide message", "wide metadata", "wide inside", "deep", "deep inside"],
)
async def test_wide_and_deep_bodies_are_rejected(
    sim: httpx.AsyncClient, path: str, changes: dict[str, Any], words: str
) -> None:
    assert words in error_of(await send(sim, path, body_for(path, **changes)), 400)


@pytest.mark.parametrize("path", [JOBS, CHAT, ANTHROPIC])
@pytest.mark.parametrize("item", [b"{}", b"1", b"null", b"[]"])
async def test_the_first_of_many_invalid_messages_is_reported(sim: httpx.AsyncClient, path: str, item: bytes) -> None:
    content = b'{"model": "sim", "max_tokens": 4, "messages": [' + b",".join([item] * 15_000) + b"]}"
    assert error_of(await send(sim, path, content), 400).startswith("messages[0]")


@pytest.mark.parametrize("path", [JOBS, CHAT, ANTHROPIC])
async def test_the_number_and_size_of_messages_are_limited(sim_stack: Stack, path: str) -> None:
    body = {**body_for(path), "messages": [{"role": "user", "content": ""}] * 10_001}
    text = json.dumps(body, separators=(",", ":")).encode()
    with sim_stack.second_api(HEADRACE_MAX_BODY_BYTES=str(4 << 20)) as url:
        async with sim_stack.client(base_url=url) as client:
            assert "10000" in error_of(await send(client, path, text), 400)
            ten_megabytes = body_for(path, messages=[{"role": "user", "content": "x" * (10 << 20)}])
            assert "larger" in error_of(await send(client, path, ten_megabytes), 413)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": SURROGATE},
        {"properties": {SURROGATE: {}}},
        {"properties": {"a": {"enum": ["fine", [SURROGATE]]}}},
        {"maximum": float("nan")},
        {"maximum": float("-inf")},
    ],
    ids=["a surrogate", "in a name", "inside", "NaN", "infinity"],
)
async def test_a_schema_must_be_json(sim: httpx.AsyncClient, schema: dict[str, Any]) -> None:
    """Values that Python's json reads but databases and engines reject."""
    tool = {"name": "level", "input_schema": schema}
    response = await send(sim, ANTHROPIC, body_for(ANTHROPIC, tools=[tool]))
    assert error_of(response, 400).startswith("tools[0].input_schema: must be serializable as JSON")
    response = await send(
        sim, ANTHROPIC, body_for(ANTHROPIC, output_config={"format": {"type": "json_schema", "schema": schema}})
    )
    assert error_of(response, 400).startswith("output_config.format.schema: must be serializable as JSON")


async def test_a_schema_may_contain_nulls_and_large_numbers(sim: httpx.AsyncClient) -> None:
    def body_with_limit(limit: int) -> dict[str, Any]:
        schema = {"type": "object", "properties": {"a": {"default": None, "minimum": -limit, "maximum": limit}}}
        return body_for(ANTHROPIC, max_tokens=60, tools=[{"name": "level", "input_schema": schema}])

    response = await send(sim, ANTHROPIC, body_with_limit(2**53))
    assert response.status_code == 200, response.text
    assert response.json()["content"][0]["type"] == "tool_use"
    assert "64-bit" in error_of(await send(sim, ANTHROPIC, body_with_limit(10**400)), 400)


@pytest.mark.parametrize("path", POSTS)
async def test_one_token_more_than_the_context_is_rejected(sim: httpx.AsyncClient, path: str) -> None:
    """The simulated engine counts one token per word, including roles, plus one."""
    words = CONTEXT - 1 - (1 if path == COMPLETIONS else 2)
    for content, status in ((" mill" * words, 200), (" mill" * (words + 1), 400)):
        given = {"prompt": content} if path == COMPLETIONS else {"messages": [{"role": "user", "content": content}]}
        response = await send(sim, path, body_for(path, max_tokens=1, **given))
        assert response.status_code == (202 if (status, path) == (200, JOBS) else status), response.text
