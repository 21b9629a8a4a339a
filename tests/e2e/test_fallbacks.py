"""The model of a route fails before its first token: the next one answers, in the same stream and in every API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import FAIL, ROUTE
from tests.e2e.test_jobs import wait_for_end
from tests.support.metrics import samples
from tests.support.sse import follow
from tests.support.stack import Stack

MESSAGES = [{"role": "user", "content": f"please {FAIL}"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/completions": {"prompt": MESSAGES[0]["content"], "max_tokens": 3},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/responses": {"input": MESSAGES[0]["content"], "max_output_tokens": 3},
}


def models_of(stream: str) -> Iterator[str]:
    """The models that the frames of a stream name."""
    for line in stream.splitlines():
        if line.startswith("data: {"):
            frame = json.loads(line.removeprefix("data: "))
            named = frame if "model" in frame else frame.get("message") or frame.get("response") or {}
            if "model" in named:
                yield named["model"]


@pytest.mark.parametrize("path", BODIES)
async def test_all_apis_name_the_model_that_answers(sim: httpx.AsyncClient, path: str) -> None:
    body = {"model": ROUTE, **BODIES[path]}
    answered = await sim.post(path, json=body)
    assert answered.status_code == 200, answered.text
    assert answered.json()["model"] == "small"
    assert answered.headers["x-headrace-route"].startswith(ROUTE)
    streamed = await sim.post(path, json={**body, "stream": True})
    assert streamed.status_code == 200, streamed.text
    assert set(models_of(streamed.text)) == {"small"}
    assert "error" not in streamed.text.replace('"error":null', "")


async def test_the_job_shows_what_happened(sim: httpx.AsyncClient, sim_stack: Stack) -> None:
    request = {"model": ROUTE, "prompt": f"please {FAIL}", "max_tokens": 3}
    created = (await sim.post("/v1/jobs", json=request)).json()
    events = await follow(sim, created["id"])
    started = [event.data["model"] for event in events if event.event == "job.started"]
    assert started == ["sim", "small"]
    job = await wait_for_end(sim, created["id"])
    assert (job["model"], job["requested_model"], job["status"]) == ("small", ROUTE, "incomplete")
    assert [(one["model"], one["outcome"], one.get("error")) for one in job["attempts"]] == [
        ("sim", "rerouted", "engine_error"),
        ("small", "incomplete", None),
    ]
    assert (job["route"]["left"], job["route"]["fallbacks"]) == (["sim"], [])
    moved = await samples(sim_stack, "worker")
    assert moved["headrace_job_fallbacks_total", "sim", "engine_error", "small"] >= 1
