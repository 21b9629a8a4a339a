"""Structured outputs that would kill or stall an engine are rejected at submit, whichever way they come in."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import httpx
import pytest

from tests.e2e.test_jobs import submit, wait_for_end
from tests.support.stack import Stack
from tests.support.structures import HOSTILE, ORDINARY
from tests.support.waiting import eventually

BAD = {"type": "object", "properties": {"x": {"type": "array", "items": {}, "minItems": 2147483648}}}
MESSAGES = [{"role": "user", "content": "x"}]
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": BAD}}
STRICT = {"type": "function", "function": {"name": "f", "parameters": BAD, "strict": True}}
TEXT_FORMAT = {"type": "json_schema", "name": "x", "schema": BAD}
RESPONSES_TOOL = {"type": "function", "name": "f", "parameters": BAD, "strict": False}
ANTHROPIC_TOOL = {"name": "f", "input_schema": BAD}

ENTRIES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "job, response_format": ("jobs", {"prompt": "x", "response_format": SCHEMA_FORMAT}, "response_format"),
    "job, json": ("jobs", {"prompt": "x", "structured_outputs": {"json": BAD}}, "structured_outputs"),
    "job, json as text": (
        "jobs", {"prompt": "x", "structured_outputs": {"json": json.dumps(BAD)}}, "structured_outputs",
    ),
    "job, tools": ("jobs", {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"}, "tools"),
    "chat, response_format": (
        "chat/completions", {"messages": MESSAGES, "response_format": SCHEMA_FORMAT}, "response_format",
    ),
    "chat, structural tag": (
        "chat/completions",
        {
            "messages": MESSAGES,
            "response_format": {
                "type": "structural_tag",
                "structures": [{"begin": "<a>", "end": "</a>", "schema": BAD}],
                "triggers": ["<a>"],
            },
        },
        "response_format",
    ),
    "chat, a required tool": (
        "chat/completions", {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"}, "tools",
    ),
    "chat, a named tool": (
        "chat/completions",
        {"messages": MESSAGES, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tools",
    ),
    "chat, a strict tool": ("chat/completions", {"messages": MESSAGES, "tools": [STRICT]}, "tools"),
    "chat, streamed": (
        "chat/completions", {"messages": MESSAGES, "response_format": SCHEMA_FORMAT, "stream": True}, "response_format",
    ),
    "completion": ("completions", {"prompt": ["x", "y"], "structured_outputs": {"json": BAD}}, "structured_outputs"),
    "response, text.format": ("responses", {"input": "x", "text": {"format": TEXT_FORMAT}}, "text.format"),
    "response, a required tool": (
        "responses", {"input": "x", "tools": [RESPONSES_TOOL], "tool_choice": "required"}, "tools",
    ),
    "message, output_config": (
        "messages",
        {"messages": MESSAGES, "output_config": {"format": {"type": "json_schema", "schema": BAD}}},
        None,
    ),
    "message, any tool": (
        "messages", {"messages": MESSAGES, "tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
async def test_a_hostile_schema_is_rejected(sim: httpx.AsyncClient, entry: str) -> None:
    path, body, param = ENTRIES[entry]
    answer = await sim.post(f"/v1/{path}", json={"model": "sim", "max_tokens": 5, **body} if path != "responses" else
                            {"model": "sim", **body})  # fmt: skip
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "minItems 2147483648" in error["message"]
    if param is not None:
        assert error["param"] == param
        assert error["message"].startswith(param)
    else:
        assert error["message"].startswith(("output_config.format", "tools"))


@pytest.mark.parametrize("name", HOSTILE)
async def test_each_hostile_structure_is_rejected(sim: httpx.AsyncClient, name: str) -> None:
    body = {"model": "sim", "prompt": "x", "structured_outputs": HOSTILE[name]}
    answer = await sim.post("/v1/jobs", content=json.dumps(body))
    # The largest exceed this stack's limit of bodies.
    assert answer.status_code in (400, 413), answer.text


async def test_ordinary_structures_are_accepted(sim: httpx.AsyncClient) -> None:
    for structure in ORDINARY.values():
        answer = await sim.post(
            "/v1/jobs", json={"model": "orphan", "prompt": "x", "structured_outputs": structure, "priority": 3}
        )
        assert answer.status_code == 202, answer.text
        await sim.post(f"/v1/jobs/{answer.json()['id']}/cancel")


async def test_only_the_hostile_line_of_a_batch_fails(sim: httpx.AsyncClient) -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": MESSAGES, "max_tokens": 5},
        {"messages": MESSAGES, "response_format": SCHEMA_FORMAT},
    ]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": {"model": "sim", **body}}
        for n, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = await sim.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
    created = await sim.post(
        "/v1/batches",
        json={"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )

    async def ended() -> dict[str, Any] | None:
        batch: dict[str, Any] = (await sim.get(f"/v1/batches/{created.json()['id']}")).json()
        return batch if batch["status"] == "completed" else None

    batch = await eventually(ended, "the batch completes", within_s=60)
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    errors = (await sim.get(f"/v1/files/{batch['error_file_id']}/content")).text
    assert "minItems 2147483648" in errors


async def test_a_replay_is_rejected(sim_stack: Stack, sim: httpx.AsyncClient) -> None:
    """A job that was accepted by an earlier version, or with other bounds."""
    job = await submit(sim, prompt="x", max_tokens=1)
    await wait_for_end(sim, job["id"])
    request = json.dumps({"prompt": "x", "structured_outputs": {"json_schema": BAD}})
    connection = await asyncpg.connect(sim_stack.environment["DATABASE_URL"].replace("+asyncpg", ""))
    try:
        await connection.execute("UPDATE jobs SET status = 'failed', request = $2 WHERE id = $1", job["id"], request)
    finally:
        await connection.close()
    replayed = sim_stack.command("api.failed", "replay", job["id"], check=False)
    assert replayed.returncode == 1
    assert "minItems 2147483648" in replayed.stderr
