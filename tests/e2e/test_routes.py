"""Routes from end to end: what clients of each API are shown, and what is stored."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import DEAR_ROUTE, ROUTE
from tests.e2e.test_jobs import wait_for_end
from tests.support.metrics import samples
from tests.support.stack import Stack
from tests.support.waiting import eventually

QUESTION = [{"role": "user", "content": "What is the capital of Peru?"}]
SCARCE = [{"role": "user", "content": "Ask the orphan."}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 2}),
        ("/v1/completions", {"prompt": "What is the capital of Peru?", "max_tokens": 2}),
        ("/v1/responses", {"input": "What is the capital of Peru?", "max_output_tokens": 16}),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 2}),
        ("/v1/jobs", {"messages": QUESTION, "max_tokens": 2}),
    ],
)
async def test_every_api_shows_the_model_that_answers(sim: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    response = await sim.post(path, json={"model": "auto:cost", **body})
    assert response.status_code in (200, 202), response.text
    assert response.json()["model"] == "sim"
    assert response.headers["x-headrace-route"].startswith("auto; rule=complexity; score=0.")


async def test_a_job_shows_why_its_model_was_chosen(sim: httpx.AsyncClient) -> None:
    job = (await sim.post("/v1/jobs", json={"model": "auto", "messages": SCARCE, "max_tokens": 2})).json()
    assert (job["model"], job["requested_model"]) == ("small", "auto"), "no worker of orphan is there"
    assert {key: job["route"][key] for key in ("route", "rule", "tried", "fallbacks", "score")} == {
        "route": "auto",
        "rule": "scarce",
        "tried": ["orphan"],
        "fallbacks": ["sim"],
        "score": None,
    }
    ended = await wait_for_end(sim, job["id"])
    assert (ended["status"], ended["route"]) == ("incomplete", job["route"])


async def test_the_route_is_shown_without_running(sim: httpx.AsyncClient) -> None:
    before = (await sim.get("/v1/jobs")).json()["data"]
    body = {"model": "auto:quality", "messages": SCARCE, "stream": True, "logprobs": True, "top_logprobs": 2}
    found = (await sim.post("/v1/route", json={**body, "max_completion_tokens": 5, "temperature": None})).json()
    assert 0 <= found.pop("score") <= 1
    assert found == {
        "object": "route",
        "requested_model": "auto:quality",
        "model": "small",
        "route": "auto",
        "mode": "quality",
        "rule": "scarce",
        "input_tokens": 5,
        "tokens_estimated": False,
        "tried": ["orphan"],
        "fallbacks": ["sim"],
        "candidates": [
            {"model": "sim", "chosen": False, "reason": None, "message": None},
            {"model": "small", "chosen": True, "reason": None, "message": None},
            {"model": "orphan", "chosen": False, "reason": "no_worker", "message": "it has no ready worker"},
        ],
    }
    prompt = (await sim.post("/v1/route", json={"model": "auto", "prompt": "hi", "logprobs": 1})).json()
    assert (prompt["model"], prompt["rule"], prompt["input_tokens"]) == ("sim", "complexity", 2)
    model = (await sim.post("/v1/route", json={"model": "small", "prompt": "hi"})).json()
    assert (model["model"], model["route"], model["rule"]) == ("small", None, None)
    assert (await sim.get("/v1/jobs")).json()["data"] == before
    for wrong, param in (({"model": "auto"}, "messages"), ({"model": "auto:best", "prompt": "hi"}, "model")):
        error = (await sim.post("/v1/route", json=wrong)).json()["error"]
        assert error["param"] == param, error
    assert f"routes: auto, {ROUTE}" in error["message"]


async def test_routes_are_listed_behind_the_models(sim: httpx.AsyncClient) -> None:
    listed = (await sim.get("/v1/models")).json()["data"]
    assert [entry["id"] for entry in listed] == ["sim", "small", "orphan", "dear", "auto", ROUTE, DEAR_ROUTE]
    route = listed[4]
    modes = ["cost", "balanced", "quality"]
    assert route["route"] == {"models": ["sim", "small", "orphan"], "modes": modes}
    assert (route["owned_by"], route["max_model_len"]) == ("headrace", 8192)
    assert route["capabilities"]["tools"] is True
    assert "route" not in listed[0]
    assert (await sim.get("/v1/models/auto:cost")).json() == {**route, "id": "auto:cost"}
    assert (await sim.get("/v1/models/auto:best")).status_code == 404


async def test_a_conversation_keeps_its_model_in_a_tool_loop(sim: httpx.AsyncClient) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns: list[dict[str, Any]] = [*SCARCE]
    first = await sim.post("/v1/jobs", json={"model": "auto", "user": "ann", "messages": turns, "max_tokens": 2})
    assert first.json()["model"] == "small"
    turns += [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "1"}]
    body = {"model": "auto", "user": "ann", "messages": turns, "max_tokens": 2, "stream": True}
    async with sim.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = [line.removeprefix("data: ") async for line in stream.aiter_lines() if line.startswith("data: {")]
    assert {json.loads(line)["model"] for line in lines} == {"small"}
    assert stream.headers["x-headrace-route"] == "auto; rule=conversation"


async def test_a_response_is_continued_by_the_model_of_the_previous_one(sim: httpx.AsyncClient) -> None:
    """Although the end user is another one, so that the conversation is not recognized."""
    body = {"model": "auto", "max_output_tokens": 16}
    first = (await sim.post("/v1/responses", json={**body, "input": SCARCE[0]["content"], "user": "ann"})).json()
    assert first["model"] == "small"
    more = {**body, "input": QUESTION[0]["content"], "user": "bob"}
    continued = await sim.post("/v1/responses", json={**more, "previous_response_id": first["id"]})
    assert continued.json()["model"] == "small"
    assert continued.headers["x-headrace-route"].startswith("auto; rule=conversation")
    assert (await sim.post("/v1/responses", json=more)).json()["model"] == "sim"


async def test_lines_of_batches_are_routed(sim: httpx.AsyncClient) -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": QUESTION},
        {"messages": SCARCE},
        {"messages": QUESTION, "max_tokens": 10**6},
    ]
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "auto", "max_tokens": 2, **body},
        }
        for number, body in enumerate(bodies)
    ]
    form = {"purpose": (None, "batch"), "file": ("in.jsonl", "\n".join(map(json.dumps, lines)))}
    file_id = (await sim.post("/v1/files", files=form)).json()["id"]
    batch = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    path = f"/v1/batches/{(await sim.post('/v1/batches', json=batch)).json()['id']}"

    async def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = (await sim.get(path)).json()
        return found if found["status"] == "completed" else None

    done = await eventually(ended, "the batch is completed")
    results = (await sim.get(f"/v1/files/{done['output_file_id']}/content")).text.splitlines()
    answers = {item["custom_id"]: item["response"]["body"]["model"] for item in map(json.loads, results)}
    assert answers == {"0": "sim", "1": "small"}
    (rejected,) = (await sim.get(f"/v1/files/{done['error_file_id']}/content")).text.splitlines()
    assert "max_tokens: this model's context is" in json.loads(rejected)["response"]["body"]["error"]["message"]


async def test_decisions_are_counted(sim: httpx.AsyncClient, sim_stack: Stack) -> None:
    await sim.post("/v1/jobs", json={"model": "auto", "messages": SCARCE, "max_tokens": 1})
    found = await samples(sim_stack, "api")
    assert found["headrace_route_decisions_total", "small", "auto", "scarce"] >= 1
    assert found["headrace_route_skipped_models_total", "orphan", "no_worker", "auto"] >= 1


async def test_tokens_are_counted_for_a_route(sim: httpx.AsyncClient) -> None:
    counted = await sim.post("/v1/messages/count_tokens", json={"model": "auto", "messages": QUESTION})
    assert counted.json() == {"input_tokens": 8}
