"""The response cache over real processes: answers of the cache are equal to the original ones in every API."""

from __future__ import annotations

import re
import uuid
from typing import Any

import httpx
import pytest

from tests.e2e.test_jobs import wait_for_end
from tests.support.sse import follow
from tests.support.stack import KEY, Stack

CACHE = "x-headrace-cache"
# The simulated model's texts have one in every 16 tokens, so that answers end with `stop`.
STOP = ["🌊"]
TOOL = {
    "name": "water_level",
    "parameters": {"type": "object", "properties": {"unit": {"enum": ["m", "ft"]}}, "required": ["unit"]},
}
CHAT_TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"stop": STOP, "temperature": 0}),
    "chat, tools": ("/v1/chat/completions", {**CHAT_TOOLS, "temperature": 0}),
    "chat, logprobs": (
        "/v1/chat/completions",
        {"stop": STOP, "temperature": 0, "logprobs": True, "top_logprobs": 2},
    ),
    "chat, choices": ("/v1/chat/completions", {"stop": STOP, "seed": 5, "n": 3}),
    "completions": ("/v1/completions", {"stop": STOP, "temperature": 0}),
    "completions, echo": ("/v1/completions", {"stop": STOP, "temperature": 0, "echo": True, "logprobs": 1}),
    "completions, prompts": ("/v1/completions", {"stop": STOP, "seed": 1, "n": 2}),
    "responses": ("/v1/responses", {"stop": STOP, "temperature": 0}),
    "responses, tools": (
        "/v1/responses",
        {"tools": [{"type": "function", **TOOL}], "tool_choice": "required", "temperature": 0},
    ),
    "messages": ("/v1/messages", {"stop_sequences": STOP, "temperature": 0, "max_tokens": 30}),
    "messages, tools": (
        "/v1/messages",
        {
            "tools": [{"name": TOOL["name"], "input_schema": TOOL["parameters"]}],
            "tool_choice": {"type": "any"},
            "temperature": 0,
            "max_tokens": 200,
        },
    ),
}


def body_of(name: str, *, streamed: bool = False, **changes: Any) -> dict[str, Any]:
    """A request that no other test sends."""
    path, options = DIALECTS[name]
    question = f"the mill {uuid.uuid4().hex}"
    if path == "/v1/responses":
        content: dict[str, Any] = {"input": question}
    elif path == "/v1/completions":
        content = {"prompt": [question, "and the river"] if name == "completions, prompts" else question}
    else:
        content = {"messages": [{"role": "user", "content": question}]}
    if streamed and path in ("/v1/chat/completions", "/v1/completions"):
        content["stream_options"] = {"include_usage": True}
    return {"model": "sim", **content, **options, "stream": streamed, "cache": {"ttl": 60}, **changes}


def without_ids_and_times(response: httpx.Response) -> str:
    """The body without what is the job's own."""
    body = response.text
    for digits in set(re.findall(r"(?:cmpl|chatcmpl|resp|msg|fc|call|rs)[-_](?:job_)?([0-9a-f]{32})", body)):
        body = body.replace(digits, "ID")
    body = re.sub(r'"(created|created_at|completed_at)":[0-9.]+', r'"\1":0', body)
    if not body.startswith("data: "):
        return body
    # The chunks of several prompts arrive in any order; those of each choice do not.
    return "\n\n".join(sorted(body.split("\n\n"), key=lambda frame: re.findall(r'"choices":\[\{"index":(\d+)', frame)))


async def send(client: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    response = await client.post(path, json=body, headers={name.replace("_", "-"): headers[name] for name in headers})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("streamed", [False, True], ids=["complete", "streamed"])
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_cached_answer_is_equal_but_for_ids_and_times(
    sim: httpx.AsyncClient, name: str, streamed: bool
) -> None:
    path, body = DIALECTS[name][0], body_of(name, streamed=streamed)
    first = await send(sim, path, body)
    second = await send(sim, path, body)
    assert (first.headers[CACHE], second.headers[CACHE]) == ("MISS", "HIT")
    assert "age" not in first.headers
    assert 0 <= int(second.headers["age"]) < 60
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-headrace-job-id"] != first.headers["x-headrace-job-id"]
    assert without_ids_and_times(second) == without_ids_and_times(first)


async def test_a_streamed_answer_serves_a_complete_one_of_another_api(sim: httpx.AsyncClient) -> None:
    body = body_of("chat", streamed=True)
    streamed = await send(sim, "/v1/chat/completions", body)
    complete = {name: value for name, value in body.items() if not name.startswith("stream")}
    job = (await sim.post("/v1/jobs", json={**complete, "user": "someone", "metadata": {"a": "b"}})).json()
    assert (job["status"], job["cache"]["outcome"]) == ("completed", "HIT")
    assert job["cache"]["source"] == streamed.headers["x-headrace-job-id"]
    assert (job["user"], job["metadata"], job["attempts"]) == ("someone", {"a": "b"}, [])
    assert job["output_text"]
    assert job["output_text"] in "".join(re.findall(r'"content":"(.*?)"', streamed.text))


async def test_a_job_answered_by_the_cache_streams_the_events_of_the_first(sim: httpx.AsyncClient) -> None:
    body = {name: value for name, value in body_of("chat").items() if name != "stream"}
    first = (await sim.post("/v1/jobs", json=body)).json()
    await wait_for_end(sim, first["id"])
    response = await sim.post("/v1/jobs", json=body)
    assert response.status_code == 200
    second = response.json()
    assert second == (await sim.get(f"/v1/jobs/{second['id']}")).json()
    events, copied = await follow(sim, first["id"]), await follow(sim, second["id"])
    events = [item for item in events if item.event != "job.queued"]
    assert copied[:-1] == events[:-1]
    assert copied[-1].data == {**events[-1].data, "timings": second["timings"]}
    assert await follow(sim, second["id"], after=2) == copied[2:]


async def test_a_response_from_the_cache_is_stored_and_can_be_continued(sim: httpx.AsyncClient) -> None:
    body = body_of("responses")
    first = (await send(sim, "/v1/responses", body)).json()
    second = (await send(sim, "/v1/responses", {**body, "background": True})).json()
    assert (second["status"], second["background"]) == ("completed", True)
    assert (await sim.get(f"/v1/responses/{second['id']}")).json() == second
    streamed = await sim.get(f"/v1/responses/{second['id']}", params={"stream": True})
    assert "response.completed" in streamed.text
    following = {**body, "input": "and then?", "previous_response_id": first["id"]}
    original = await send(sim, "/v1/responses", following)
    again = await send(sim, "/v1/responses", {**following, "previous_response_id": second["id"]})
    assert (original.headers[CACHE], again.headers[CACHE]) == ("MISS", "HIT"), "both continue the same conversation"


async def test_directives_and_options_decide_whether_the_cache_is_used(sim: httpx.AsyncClient) -> None:
    path = "/v1/chat/completions"

    async def outcome(body: dict[str, Any], cache_control: str = "") -> str | None:
        headers = {"Cache_Control": cache_control} if cache_control else {}
        found: str | None = (await send(sim, path, body, **headers)).headers.get(CACHE)
        return found

    body = body_of("chat")
    plain = {name: value for name, value in body.items() if name != "cache"}
    assert await outcome(plain) is None, "the cache is off unless asked for"
    assert await outcome(plain, "max-age=0") is None
    assert await outcome(plain, "max-age=60") == "MISS"
    assert await outcome(body) == "HIT"
    assert await outcome(body, "no-cache") == "MISS"
    assert await outcome(body, "no-store") == "BYPASS"
    assert await outcome({**body, "store": False}) == "BYPASS"
    assert await outcome({**body, "max_tokens": 2}) == "MISS"
    assert await outcome({**body, "max_tokens": 2}) == "MISS", "an answer that was cut is not stored"
    assert await outcome({**body, "cache": {"scope": "key"}}) == "MISS"
    assert await outcome({**body, "cache": {"scope": "user"}}) == "BYPASS"
    assert await outcome({**body, "cache": {"scope": "user"}, "user": "ann"}) == "MISS"
    assert await outcome({**body, "cache": {"scope": "user"}, "user": "ben"}) == "MISS"
    assert await outcome({**body, "cache": {"scope": "user"}, "user": "ann", "priority": 7}) == "HIT"


async def test_a_retry_with_an_idempotency_key_gets_the_answered_job(sim: httpx.AsyncClient) -> None:
    path, body, key = "/v1/chat/completions", body_of("chat"), uuid.uuid4().hex
    await send(sim, path, body)
    first = await send(sim, path, body, Idempotency_Key=key)
    again = await send(sim, path, body, Idempotency_Key=key)
    assert (first.headers[CACHE], again.headers["idempotent-replayed"]) == ("HIT", "true")
    assert again.text == first.text


async def test_deleting_the_job_or_purging_the_cache_removes_the_answer(sim: httpx.AsyncClient) -> None:
    path, body = "/v1/chat/completions", body_of("chat")
    first = await send(sim, path, body)
    assert (await sim.delete(f"/v1/jobs/{first.headers['x-headrace-job-id']}")).status_code == 200
    assert (await send(sim, path, body)).headers[CACHE] == "MISS"
    assert (await send(sim, path, body)).headers[CACHE] == "HIT"
    assert (await sim.delete("/v1/cache", params={"model": "small"})).json()["entries"] == 0
    assert (await sim.delete("/v1/cache", params={"older_than": 3600})).json()["entries"] == 0
    purged = (await sim.delete("/v1/cache", params={"model": "sim"})).json()
    assert purged["object"] == "cache.purged"
    assert purged["entries"] >= 1
    assert (await send(sim, path, body)).headers[CACHE] == "MISS"


async def test_another_project_does_not_find_the_answer(sim_stack: Stack, sim: httpx.AsyncClient) -> None:
    created = sim_stack.command("api.keys", "create", f"stranger-{uuid.uuid4().hex}")
    stranger = {"Authorization": f"Bearer {created.stdout.strip()}"}
    path, body = "/v1/chat/completions", body_of("chat")
    assert stranger["Authorization"] != f"Bearer {KEY}"
    await send(sim, path, body)
    async with httpx.AsyncClient(base_url=sim_stack.url, headers=stranger, timeout=60) as other:
        assert (await send(other, path, body)).headers[CACHE] == "MISS"
        assert (await other.delete("/v1/cache")).json()["entries"] == 1
    assert (await send(sim, path, body)).headers[CACHE] == "HIT"
