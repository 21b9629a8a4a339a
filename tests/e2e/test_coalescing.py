"""Identical requests at the same time: one generation, whatever happens to the client that was first."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson

from tests.e2e.test_jobs import wait_for_end
from tests.e2e.test_projects import bearer, create_key
from tests.support.sse import follow
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

REQUESTS = 100


def request(text: str, **fields: Any) -> dict[str, Any]:
    """A request that runs for about a second."""
    return {
        "model": "small",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 40,
        "temperature": 0,
        "cache": {"ttl": 60},
        **fields,
    }


def text_of(frames: str) -> str:
    """The text of a stream of chunks."""
    lines = [line.removeprefix("data: ") for line in frames.split("\n") if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for line in lines for choice in orjson.loads(line)["choices"])


async def test_a_hundred_identical_requests(sim: httpx.AsyncClient, sim_stack: Stack) -> None:
    async def ask(number: int) -> tuple[str, str]:
        body = request("a hundred times", stream=number % 2 == 1, user=f"user {number}")
        answer = await sim.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        text = text_of(answer.text) if body["stream"] else answer.json()["choices"][0]["message"]["content"]
        return answer.headers["x-headrace-cache"], text

    async def queued() -> bool:
        params: dict[str, str | int] = {"limit": REQUESTS, "model": "small", "status": "queued"}
        # On another client: these requests use all connections of the first one.
        return len((await watcher.get("/v1/jobs", params=params)).json()["data"]) == REQUESTS

    # None ends before all have been submitted, however slow that is.
    key = create_key(sim_stack, "operator", "--project", "operations", "--scope", "admin")
    async with bearer(sim_stack, key) as operator, bearer(sim_stack, KEY) as watcher:
        (await operator.post("/v1/models/small/pause")).raise_for_status()
        try:
            asking = [asyncio.create_task(ask(number)) for number in range(REQUESTS)]
            await eventually(queued, "all requests wait", within_s=60)
        finally:
            (await operator.post("/v1/models/small/resume")).raise_for_status()
    answers = await asyncio.gather(*asking)
    assert Counter(outcome for outcome, _ in answers) == {"MISS": 1, "COALESCED": REQUESTS - 1}
    assert len({text for _, text in answers}) == 1
    listed = (await sim.get("/v1/jobs", params={"limit": REQUESTS})).json()["data"]
    assert len([job for job in listed if job["attempts"]]) == 1
    (leader,) = [job for job in listed if job["cache"]["outcome"] == "MISS"]
    followers = [job for job in listed if job is not leader]
    assert {job["cache"]["source"] for job in followers} == {leader["id"]}
    assert {job["status"] for job in listed} == {"incomplete"}
    assert {job["usage"]["completion_tokens"] for job in listed} == {40}


async def test_the_first_client_disconnects(sim: httpx.AsyncClient) -> None:
    body = request("the first one leaves", stream=True)
    async with sim.stream("POST", "/v1/chat/completions", json=body) as first:
        assert first.headers["x-headrace-cache"] == "MISS"
        frames = first.aiter_text()
        while "content" not in await anext(frames):
            pass
        other = asyncio.create_task(sim.post("/v1/chat/completions", json=body))
        job = (await sim.post("/v1/jobs", json=request("the first one leaves"))).json()
        assert job["cache"]["outcome"] == "COALESCED"
        leader = job["cache"]["source"]
    done = await wait_for_end(sim, job["id"])
    answer = await other
    assert answer.headers["x-headrace-cache"] == "COALESCED"
    assert (await wait_for_end(sim, leader))["status"] == "cancelled"
    again = await sim.post("/v1/chat/completions", json=request("the first one leaves", cache=None))
    expected = again.json()["choices"][0]["message"]["content"]
    assert text_of(answer.text) == expected == done["output_text"]
    assert done["status"] == "incomplete"


async def test_a_follower_has_its_own_times(sim: httpx.AsyncClient) -> None:
    """Whatever API it was sent with: those of its leader began before it was submitted."""
    text = "the second one came later"
    async with sim.stream("POST", "/v1/chat/completions", json=request(text, stream=True)) as first:
        frames = first.aiter_text()
        while "content" not in await anext(frames):
            pass
        job = (await sim.post("/v1/jobs", json=request(text))).json()
        streamed, chat, _ = await asyncio.gather(
            follow(sim, job["id"]),
            sim.post("/v1/chat/completions", json=request(text)),
            _drain(frames),
        )
    leader = (await sim.get(f"/v1/jobs/{first.headers['x-headrace-job-id']}")).json()
    for job_id in (job["id"], chat.headers["x-headrace-job-id"]):
        done = (await sim.get(f"/v1/jobs/{job_id}")).json()
        assert (done["cache"]["outcome"], done["cache"]["source"]) == ("COALESCED", leader["id"])
        assert (await follow(sim, job_id))[-1].data["timings"] == done["timings"]
        assert (done["timings"]["queued_ms"], done["timings"]["ttft_ms"]) == (0, 0)
        assert 0 < done["timings"]["total_ms"] < leader["timings"]["total_ms"]
    assert streamed[-1].data["timings"] == (await sim.get(f"/v1/jobs/{job['id']}")).json()["timings"]
    assert (await follow(sim, leader["id"]))[-1].data["timings"] == leader["timings"]


async def _drain(frames: AsyncIterator[str]) -> None:
    async for _ in frames:
        pass
