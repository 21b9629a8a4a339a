"""Native jobs over real processes: submit, poll, stream, resume, cancel, list, delete."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import redis

from chaos.sse import read_events
from tests.e2e.conftest import FAIL
from tests.support.sse import follow, text_of
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

EMOJI = "🌊"


async def submit(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    payload = {"model": "sim", "prompt": "the mill", "max_tokens": 20, **body}
    response = await client.post("/v1/jobs", json=payload)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


async def wait_for_end(client: httpx.AsyncClient, job_id: str, *, within_s: float = 90) -> dict[str, Any]:
    async def probe() -> dict[str, Any] | None:
        response = await client.get(f"/v1/jobs/{job_id}")
        return response.json() if response.status_code == 200 else None

    return await eventually(probe, f"{job_id} ends", within_s=within_s)


async def wait_until_running(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async def probe() -> dict[str, Any] | None:
        job: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).json()
        return job if job["status"] == "in_progress" else None

    return await eventually(probe, f"{job_id} is running")


async def test_submit_and_poll(sim: httpx.AsyncClient) -> None:
    response = await sim.post(
        "/v1/jobs", json={"model": "sim", "prompt": "the mill", "max_tokens": 9, "metadata": {"a": "b"}}
    )
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == job["status_url"] == f"/v1/jobs/{job['id']}"
    assert response.headers["retry-after"]
    assert job["status"] == "queued"
    done = await wait_for_end(sim, job["id"])
    assert done["status"] == "incomplete"  # max_tokens was reached
    (choice,) = done["output"]
    expected = {"index": 0, "text": done["output_text"], "finish_reason": "length", "tool_calls": []}
    assert {name: value for name, value in choice.items() if value is not None} == expected
    assert done["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "cached_tokens": 0}
    assert 0 <= done["timings"]["queued_ms"] <= done["timings"]["ttft_ms"] <= done["timings"]["total_ms"]
    assert done["metadata"] == {"a": "b"}
    (attempt,) = done["attempts"]
    assert (attempt["number"], attempt["tokens"], attempt["outcome"]) == (1, 9, "incomplete")


async def test_prefer_wait_returns_the_result(sim: httpx.AsyncClient) -> None:
    body = {"model": "sim", "prompt": "the mill", "max_tokens": 5}
    response = await sim.post("/v1/jobs", json=body, headers={"Prefer": "respond-async, wait=20"})
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=20"
    assert response.json()["output_text"]


async def test_prefer_wait_returns_the_job_after_the_timeout(sim: httpx.AsyncClient) -> None:
    response = await sim.post("/v1/jobs", json={"model": "orphan", "prompt": "x"}, headers={"Prefer": "wait=1"})
    assert response.status_code == 202
    assert response.json()["status"] == "queued"


async def test_the_stream_equals_the_result(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=40)
    events = await follow(sim, job["id"])
    done = await wait_for_end(sim, job["id"])
    kinds = [item.event for item in events if item.event != "job.queued"]
    assert kinds[0] == "job.started"
    assert set(kinds[1:-1]) == {"job.delta"}
    assert kinds[-1] == "job.incomplete"
    assert text_of(events) == done["output_text"]
    assert events[-1].data["usage"]["completion_tokens"] == 40
    assert events[-1].data["timings"] == done["timings"]
    ids = [item.id for item in events if item.id is not None]
    assert ids == list(range(1, len(ids) + 1))


async def test_characters_are_never_split(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=40)
    events = await follow(sim, job["id"])
    texts = [item.data["text"] for item in events if item.event == "job.delta"]
    assert EMOJI in "".join(texts)
    assert not any("\ufffd" in text for text in texts)
    assert all(texts), "every delta has text"


async def test_resuming_from_any_cursor_returns_the_remaining_events(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=20)
    complete = [item for item in await follow(sim, job["id"]) if item.id is not None]
    for item in complete[:-1]:
        assert item.id is not None
        assert await follow(sim, job["id"], after=item.id) == complete[item.id :]


async def test_a_dropped_connection_resumes_without_gap_or_repeat(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=100)
    seen = []
    async with sim.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
        async for item in read_events(response):
            seen.append(item)
            if len(seen) == 10:
                break
    last = seen[-1].id
    headers = {"Last-Event-ID": str(last)}
    async with sim.stream("GET", f"/v1/jobs/{job['id']}/stream", headers=headers) as response:
        seen += [item async for item in read_events(response)]
    ids = [item.id for item in seen if item.id is not None]
    assert ids == list(range(1, len(ids) + 1))
    assert text_of(seen) == (await wait_for_end(sim, job["id"]))["output_text"]


async def test_concurrent_readers_get_the_same_text(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=60)
    streams = await asyncio.gather(*(follow(sim, job["id"]) for _ in range(8)))
    assert len({text_of(events) for events in streams}) == 1


async def test_a_stream_is_served_from_the_database_if_its_log_is_lost(
    sim_stack: Stack, sim: httpx.AsyncClient
) -> None:
    job = await submit(sim, max_tokens=20)
    events = [item for item in await follow(sim, job["id"]) if item.id is not None]
    with redis.Redis.from_url(sim_stack.environment["REDIS_URL"]) as client:
        assert client.delete(f"hr:log:{job['id']}") == 1
    assert await follow(sim, job["id"]) == events
    assert await follow(sim, job["id"], after=4) == events[4:]


async def test_a_cursor_at_the_last_event_returns_204(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=3)
    last = (await follow(sim, job["id"]))[-1].id
    response = await sim.get(f"/v1/jobs/{job['id']}/stream", params={"starting_after": str(last)})
    assert (response.status_code, response.content) == (204, b"")


async def test_sse_headers(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=3)
    response = await sim.get(f"/v1/jobs/{job['id']}/stream")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"


async def test_cancelling_a_running_job_keeps_its_text(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=4000)
    seen = []
    async with sim.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
        async for item in read_events(response):
            seen.append(item)
            if item.id == 5:
                cancelled = await sim.post(f"/v1/jobs/{job['id']}/cancel")
                assert cancelled.json()["status"] in ("cancelling", "cancelled")
    assert seen[-1].event == "job.cancelled"
    assert seen[-1].data["error"]["code"] == "cancelled"
    done = await wait_for_end(sim, job["id"])
    assert done["status"] == "cancelled"
    assert done["output_text"] == text_of(seen)
    assert 0 < done["usage"]["completion_tokens"] < 4000
    again = await sim.post(f"/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()) == (200, done)


async def test_cancelling_a_queued_job_ends_it_immediately(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, model="orphan")
    done = (await sim.post(f"/v1/jobs/{job['id']}/cancel")).json()
    assert (done["status"], done["error"]["code"], done["attempts"]) == ("cancelled", "cancelled", [])
    assert [item.event for item in await follow(sim, job["id"])] == ["job.cancelled"]
    assert (await sim.post(f"/v1/jobs/{job['id']}/cancel")).json() == done


async def test_a_failing_engine_call_fails_only_its_job(sim: httpx.AsyncClient) -> None:
    failing, fine = await submit(sim, prompt=f"please {FAIL}"), await submit(sim)
    failed = await wait_for_end(sim, failing["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "engine_error")
    assert (await follow(sim, failing["id"]))[-1].event == "job.failed"
    assert (await wait_for_end(sim, fine["id"]))["status"] == "incomplete"
    assert (await wait_for_end(sim, (await submit(sim))["id"]))["status"] == "incomplete"


async def test_stop_strings_are_not_in_the_text(sim: httpx.AsyncClient) -> None:
    complete = await wait_for_end(sim, (await submit(sim, max_tokens=60))["id"])
    stop = complete["output_text"][40:47]
    job = await submit(sim, max_tokens=60, stop=[stop])
    events = await follow(sim, job["id"])
    done = await wait_for_end(sim, job["id"])
    assert done["status"] == "completed"
    assert done["output"][0]["finish_reason"] == "stop"
    assert done["output_text"] == text_of(events) == complete["output_text"][: complete["output_text"].index(stop)]


async def test_several_choices(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, n=3, temperature=1, max_tokens=12)
    events = await follow(sim, job["id"])
    done = await wait_for_end(sim, job["id"])
    assert [choice["text"] for choice in done["output"]] == [text_of(events, index) for index in range(3)]
    assert done["usage"]["completion_tokens"] == 36


async def test_jobs_are_listed_by_page(sim_stack: Stack) -> None:
    key = sim_stack.command("api.keys", "create", "lister").stdout.strip()
    async with sim_stack.client(headers={"Authorization": f"Bearer {key}"}) as client:
        ids = [(await submit(client, max_tokens=1))["id"] for _ in range(5)]
        first = (await client.get("/v1/jobs", params={"limit": 3})).json()
        assert [job["id"] for job in first["data"]] == ids[:1:-1]
        assert first["has_more"]
        rest = (await client.get("/v1/jobs", params={"after": first["last_id"]})).json()
        assert [job["id"] for job in rest["data"]] == ids[1::-1]
        assert not rest["has_more"]
        for job_id in ids:
            await wait_for_end(client, job_id)
        done = (await client.get("/v1/jobs", params={"status": "incomplete", "model": "sim"})).json()
        assert len(done["data"]) == 5
        assert (await client.get("/v1/jobs", params={"model": "orphan"})).json()["data"] == []


async def test_a_deleted_job_returns_404(sim: httpx.AsyncClient) -> None:
    queued = await submit(sim, model="orphan")
    rejected = await sim.delete(f"/v1/jobs/{queued['id']}")
    assert rejected.status_code == 409
    assert "cancel it first" in rejected.json()["error"]["message"]
    await sim.post(f"/v1/jobs/{queued['id']}/cancel")

    job = await submit(sim, max_tokens=3)
    await wait_for_end(sim, job["id"])
    assert (await sim.delete(f"/v1/jobs/{job['id']}")).json() == {
        "id": job["id"],
        "object": "job.deleted",
        "deleted": True,
    }
    for path in ("", "/stream"):
        assert (await sim.get(f"/v1/jobs/{job['id']}{path}")).status_code == 404


async def test_another_projects_job_returns_404(sim_stack: Stack, sim: httpx.AsyncClient) -> None:
    job = await submit(sim)
    key = sim_stack.command("api.keys", "create", "stranger", "--project", "jobs-stranger").stdout.strip()
    async with sim_stack.client(headers={"Authorization": f"Bearer {key}"}) as other_client:
        answers = [
            await other_client.get(f"/v1/jobs/{job['id']}"),
            await other_client.get(f"/v1/jobs/{job['id']}/stream"),
            await other_client.post(f"/v1/jobs/{job['id']}/cancel"),
            await other_client.delete(f"/v1/jobs/{job['id']}"),
        ]
    assert [answer.status_code for answer in answers] == [404] * 4
    assert {answer.json()["error"]["code"] for answer in answers} == {"job_not_found"}


async def test_a_worker_takes_only_as_many_jobs_as_its_engine_has_slots(
    sim_stack: Stack, sim: httpx.AsyncClient
) -> None:
    jobs = [await submit(sim, model="small", max_tokens=150) for _ in range(10)]
    await wait_until_running(sim, jobs[1]["id"])
    states = [(await sim.get(f"/v1/jobs/{job['id']}")).json()["status"] for job in jobs]
    assert states.count("in_progress") == 2
    with redis.Redis.from_url(sim_stack.environment["REDIS_URL"]) as client:
        on_queue = client.llen("headrace.small\x06\x163")
    assert on_queue >= 6, "two run, two are reserved, and the others are available to other workers"
    positions = [(await sim.get(f"/v1/jobs/{job['id']}")).json()["queue_position"] for job in jobs[2:]]
    assert positions == sorted(positions)
    for job in jobs:
        await sim.post(f"/v1/jobs/{job['id']}/cancel")
    for job in jobs:
        await wait_for_end(sim, job["id"])


async def test_urgent_jobs_start_first(sim_stack: Stack, sim: httpx.AsyncClient) -> None:
    blockers = [await submit(sim, model="small", max_tokens=4000) for _ in range(4)]
    for blocker in blockers[:2]:
        await wait_until_running(sim, blocker["id"])
    low_priority = [await submit(sim, model="small", max_tokens=2, priority=9) for _ in range(3)]
    urgent = await submit(sim, model="small", max_tokens=2, priority=0)
    with redis.Redis.from_url(sim_stack.environment["REDIS_URL"]) as client:

        async def all_on_the_queue() -> bool:
            return (client.llen("headrace.small\x06\x169"), client.llen("headrace.small")) == (3, 1)

        await eventually(all_on_the_queue, "three low-priority messages and an urgent one are queued")
    for blocker in blockers:
        await sim.post(f"/v1/jobs/{blocker['id']}/cancel")
    done = await wait_for_end(sim, urgent["id"])
    rest = [await wait_for_end(sim, job["id"]) for job in low_priority]
    assert all(done["started_at"] < job["started_at"] for job in rest)


async def test_two_workers_share_the_queue(sim_stack: Stack, sim: httpx.AsyncClient) -> None:
    second = sim_stack.start_worker("small")
    try:
        jobs = [await submit(sim, model="small", max_tokens=30) for _ in range(12)]
        done = [await wait_for_end(sim, job["id"]) for job in jobs]
        assert len({job["attempts"][0]["worker"] for job in done}) == 2
        assert all(job["status"] == "incomplete" for job in done)
    finally:
        process = sim_stack.processes.pop(second)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_readyz_names_the_model_without_a_worker(sim: httpx.AsyncClient) -> None:
    response = await sim.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "status": "unready",
        "checks": {
            "database": "ok",
            "redis": "ok",
            "model sim": "ok",
            "model small": "ok",
            "model orphan": "no live worker",
            "model dear": "no live worker",
        },
    }
    assert (await sim.get("/healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer "])
async def test_the_authorization_scheme_is_case_insensitive(sim_stack: Stack, prefix: str) -> None:
    async with sim_stack.client(headers={"Authorization": prefix + KEY}) as client:
        assert (await client.get("/v1/models")).status_code == 200
